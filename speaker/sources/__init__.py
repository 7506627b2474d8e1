"""Where a corpus comes from: the homework's archive, a folder of recordings, or the built-in demo."""
