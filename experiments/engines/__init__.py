"""Who starts the workers of a search, and what is shown of them."""
