"""Which points are tried, in what order, and for how long."""
