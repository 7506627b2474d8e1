"""Frames in, one vector an utterance out: each pooling a class in its own file,
chosen by its name in `pooling`.
"""
