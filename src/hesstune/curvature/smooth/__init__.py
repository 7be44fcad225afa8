"""The smooth path: H_i⁺ where H_i has negative eigenvalues, by Lanczos, with a bracket."""
