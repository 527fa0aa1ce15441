"""Methods that learn a prior from source tasks, one file per paper."""
