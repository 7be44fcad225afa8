"""Bounds on the test error: the paper's measures, and certificates that hold with probability 1 − δ."""
