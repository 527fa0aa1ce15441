"""Priors and prompts as folders: header, tensors, model card, other formats."""
