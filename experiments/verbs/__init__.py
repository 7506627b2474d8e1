"""The verbs of `python -m experiments`, a file each: its flags and what it does."""
