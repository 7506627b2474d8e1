"""Where a corpus comes from: the homework's archive, recordings, or the built-in demo."""
