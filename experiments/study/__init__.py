"""What is tried next, and by whom."""
