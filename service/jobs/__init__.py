"""Builds run in processes of their own, so that the API answers while they do."""
