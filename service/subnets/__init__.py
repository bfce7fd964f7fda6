"""Subnets: asked for, built once, kept, handed out."""
