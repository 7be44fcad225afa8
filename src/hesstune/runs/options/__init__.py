"""The options of a run in five groups, and those of what is asked of a finished one, each declared once."""
