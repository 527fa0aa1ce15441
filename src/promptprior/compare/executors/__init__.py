"""Where the work of a comparison is done: in this process, or on a Ray cluster."""
