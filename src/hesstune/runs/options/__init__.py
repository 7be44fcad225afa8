"""The options of a run in five groups, each declared once."""
