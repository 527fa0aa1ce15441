"""AXIS 1: how parameters become prompts, one file each. The protocols are in parameterisation.py."""
