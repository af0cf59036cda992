"""The zoo, one file per family."""
