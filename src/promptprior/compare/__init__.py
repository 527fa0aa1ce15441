"""Many methods on many targets: the grid, its store of results, statistics and the report."""
