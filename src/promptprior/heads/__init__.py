"""AXIS 3: how states become answers (head.py); all of them by name are in registry.py."""
