"""Adapters from what users have (folders, CSV files, built-in data) to examples in memory."""
