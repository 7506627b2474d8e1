"""A model names the speakers of utterances."""
