"""The devices that can be named instead of described."""
