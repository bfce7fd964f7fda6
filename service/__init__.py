"""EQ-Net Serve over HTTP: a thin shell around `eqnet_core.factory`."""

import os

# The search multiplies thousands of small matrices: more than one thread for each makes them wait for one
# another (beside other work on 2 cores a search of 0.4 s took 54 s). Set before NumPy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
