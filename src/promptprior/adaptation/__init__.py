"""One episode to one prompt, around the training run: folds of its examples, heads, and the choice among methods."""
