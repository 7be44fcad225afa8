"""Studies: tasks, many runs of many methods on them, and tables."""
