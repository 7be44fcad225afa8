"""The true class behind a noisy label, from features: probes, noise matrix and posterior in turn."""
