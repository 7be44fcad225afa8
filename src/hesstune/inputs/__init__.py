"""Inputs of networks: images, texts, and features computed once."""
