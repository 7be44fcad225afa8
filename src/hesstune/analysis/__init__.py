"""What is asked of a finished run: measured, certified, predicted, its labels doubted."""
