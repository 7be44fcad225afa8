"""Running a method: configuration, loop, checkpoints and the run folder."""
