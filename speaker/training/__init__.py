"""A point and a pack in, the best weights out."""
