"""Searches that are killed between any two of their writes, and what they have lost by it."""
