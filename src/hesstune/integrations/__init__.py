"""hesstune inside other libraries' training loops."""
