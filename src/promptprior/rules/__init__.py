"""How parameters move: one file per rule, and the optimisers they share."""
