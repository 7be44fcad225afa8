"""A run on disk: its configuration, folder, records and checkpoints."""
