"""Facts of each family, readable without torch."""
