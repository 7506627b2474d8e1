"""Flags that several verbs have."""

import argparse

from speaker.common.cli import plain_name


def add_study(flags: argparse.ArgumentParser) -> None:
    """Add the flag that says which study is meant."""
    flags.add_argument("--study", type=plain_name, required=True, metavar="NAME")
