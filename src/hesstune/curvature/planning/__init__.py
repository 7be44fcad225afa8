"""How each layer is measured: what the graph, a few examples and probes say of it, and what is refused."""
