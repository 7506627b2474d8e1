"""Addresses of stores, as they may be shown."""

import re

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError


def masked(url: str) -> str:
    """Return a URL fit to be shown and logged: without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return re.sub(r"://[^/@]*@", "://***@", url)
