"""A study as a page that a person reads: questions, answers from the data, figures."""
