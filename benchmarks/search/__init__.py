"""A table of trained points, and searches replayed on it."""
