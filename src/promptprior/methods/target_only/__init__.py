"""Methods that see the target's examples alone, one file per paper."""
