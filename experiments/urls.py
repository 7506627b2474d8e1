"""Addresses of stores: what they are of, and how they may be shown."""

import re
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from speaker.common.files import real_path


def masked(url: str) -> str:
    """Return a URL fit to be shown and logged: without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return re.sub(r"://[^/@]*@", "://***@", url)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a store that is a file of SQLite; None for any other."""
    return real_path(Path(uri.removeprefix("sqlite:///"))) if uri.startswith("sqlite:///") else None


def shown(url: str) -> str:
    """Return where a store is, in few words: a file below this folder, or else its URL."""
    path, here = sqlite_path(url), Path.cwd()
    return str(path.relative_to(here)) if path and path.is_relative_to(here) else masked(url)
