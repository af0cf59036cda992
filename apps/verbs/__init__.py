"""One file per verb; each imports what is heavy inside its function."""
