"""Accuracies without a build."""
