"""Makes the sub-models of a split: what to cut, cutting, training, and how good it is."""
