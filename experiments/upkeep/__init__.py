"""What is kept, removed, moved and brought back, long after a search."""
