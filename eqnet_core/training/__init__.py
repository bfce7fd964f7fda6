"""Offline training, from images to a bundle. Nothing else imports this package."""
