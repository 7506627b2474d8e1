"""Frames in, speaker logits out."""
