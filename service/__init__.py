"""EQ-Net Serve over HTTP: a thin shell around `eqnet_core.factory`."""
