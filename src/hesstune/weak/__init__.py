"""Programmatic labels: votes of rules, crowds and weak models, and the models that combine them."""
