"""A file per verb: its settings, and what it calls."""
