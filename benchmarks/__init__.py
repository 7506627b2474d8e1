"""What is measured, and the results with their origin."""
