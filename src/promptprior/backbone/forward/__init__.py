"""The ways from prompts and texts to losses, one file per family."""
