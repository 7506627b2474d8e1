"""Frames in, frames out that know of each other: each encoder a class in its own file,
chosen by its name in `encoder`.
"""
