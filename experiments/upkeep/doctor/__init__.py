"""What is missing, doubled, stranded, damaged or left over in both stores and beside them."""
