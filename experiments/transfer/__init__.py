"""A study as one file: what it says leaves one pair of stores, and is taken by another."""
