"""The supernets that are loaded."""
