"""Noise matrices: what the labels' noise is believed to be."""
