"""Adapters from model names to torch modules with their preprocessing."""
