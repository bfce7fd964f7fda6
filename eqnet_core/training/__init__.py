"""Offline training: float network, supernet, samples, predictors, bundle. Nothing else imports this package."""
