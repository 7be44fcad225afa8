"""What networks are fed: images, texts, and features computed once."""
