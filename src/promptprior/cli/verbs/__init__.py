"""A file per verb: its plan, and what it calls."""
