"""What papers printed, to be set beside results."""
