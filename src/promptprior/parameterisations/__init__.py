"""AXIS 1: how parameters become prompts, one file each."""
