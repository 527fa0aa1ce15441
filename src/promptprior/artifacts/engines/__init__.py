"""A prompt for the engines people serve models with: a GGUF file, and folders that their servers and clients read."""
