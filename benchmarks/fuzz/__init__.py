"""Mutated files of every format that the program reads, and how each is judged."""
