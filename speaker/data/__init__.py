"""What a corpus is, and how training reads it."""
