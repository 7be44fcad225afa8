"""Losses that stay consistent under label noise."""
