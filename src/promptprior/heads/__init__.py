"""AXIS 3: how states become answers."""
