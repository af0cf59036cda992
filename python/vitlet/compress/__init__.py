"""Methods that make a model cheaper; each returns a new model."""
