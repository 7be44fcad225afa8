"""From weak labelers, labeling functions and votes to labels and their noise matrix."""
