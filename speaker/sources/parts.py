"""The parts of the homework's archive: their names, URLs and order, as a manifest, a list of URLs or a folder says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from urllib.parse import urlsplit

from speaker.common.errors import UserError
from speaker.common.files import parse_json, read_bounded
from speaker.data.corpus import PLAIN_NAME

LARGEST_PART = 64 << 30
LARGEST_MANIFEST = 1 << 20
SUFFIXES = tuple(map("".join, product(ascii_lowercase, repeat=2)))
PART_NAME = re.compile(r"(.+part)[a-z]{2}", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A piece of the archive: where it is, and what is known of it."""

    url: str
    name: str  # of its file
    size: int | None = None  # bytes
    sha256: str | None = None  # hex


HOMEWORK = tuple(
    Part(f"https://github.com/googly-mingto/ML2023HW4/releases/download/data/{name}", name)
    for name in (f"Dataset.tar.gz.part{suffix}" for suffix in SUFFIXES[:4])
)


def read_manifest(path: Path) -> tuple[Part, ...]:
    """Read `{"parts": [{"url": ..., "size": ..., "sha256": ...}, ...]}`; size and sha256 may be left out.

    Raises UserError, which names the file, the key and the rule.
    """
    value = parse_json(read_bounded(path, LARGEST_MANIFEST), path)
    entries = _object(value, "parts", (), str(path))["parts"]
    if not isinstance(entries, list):
        raise UserError(f"{path}: parts must be a list, but is {type(entries).__name__}; list the parts' URLs in it")
    parts = tuple(_read_entry(entry, f"{path}: parts[{i}]") for i, entry in enumerate(entries))
    _check_order([part.name for part in parts], f"{path}: parts")
    return parts


def parts_of_urls(urls: Sequence[str]) -> tuple[Part, ...]:
    """Return the parts at `urls`, which must be in the archive's order."""
    parts = tuple(Part(url, _name(url, f"URL {i}")) for i, url in enumerate(urls, 1))
    _check_order([part.name for part in parts], "the URLs")
    return parts


def find_parts(folder: Path) -> list[Path]:
    """Return the parts of the archive in a folder, in order: `*.partaa`, `*.partab`, ... or one `Dataset.tar.gz`.

    Raises UserError when one is missing, doubled or of another archive. A last one that is missing shows only when the
    archive ends early.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} must be a folder with the archive's parts, but is none; give the one that holds them"
        )
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    found = [name for name in names if name == "Dataset.tar.gz" or PART_NAME.fullmatch(name)]
    found.sort(key=lambda name: (name[-2:] if PART_NAME.fullmatch(name) else "", name))
    _check_order(found, str(folder))
    for name in found:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: a part must be a regular file, but this is none; put the file there")
        if is_page(folder / name):
            raise UserError(f"{folder / name}: a part must be a piece of an archive, but is a web page; fetch it again")
    return [folder / name for name in found]


def _object(value: object, needed: str, others: Sequence[str], where: str) -> dict[str, Any]:
    """Return a JSON object that has the key `needed`, and none but that and `others`."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, but is {type(value).__name__}; see the README for the format")
    if needed not in value:
        raise UserError(f"{where}: the key {needed!r} is missing; add it")
    if unknown := sorted(set(value) - {needed, *others}):
        names = ", ".join((needed, *others))
        raise UserError(f"{where}: the keys must be of {names}, but one is {unknown[0][:80]!r}; remove it")
    return value


def _read_entry(value: object, where: str) -> Part:
    entry = _object(value, "url", ("size", "sha256"), where)
    url, size, sha256 = entry["url"], entry.get("size"), entry.get("sha256")
    if not isinstance(url, str):
        raise UserError(f"{where}.url must be text, but is {type(url).__name__}; mend it")
    if size is not None and not (type(size) is int and 1 <= size <= LARGEST_PART):
        raise UserError(
            f"{where}.size must be a whole number from 1 to {LARGEST_PART}, but is {str(size)[:20]}; mend it"
        )
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9A-Fa-f]{64}", sha256)):
        raise UserError(f"{where}.sha256 must be 64 hex digits, but is {str(sha256)[:80]!r}; mend it")
    return Part(url, _name(url, f"{where}.url"), size, sha256.lower() if sha256 else None)


def _name(url: str, where: str) -> str:
    """Return the file name at the end of a URL, both checked."""
    check_url(url, where)
    name = urlsplit(url).path.rpartition("/")[2]
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(f"{where} must end in a plain file name, but ends in {name[:80]!r}; give the URL of a part")
    return name


def check_url(url: str, where: str) -> None:
    """Raise UserError unless `url` is one of http or https, with a host and without a password."""
    try:
        split = urlsplit(url)
        web = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:  # a port or an address that is none
        web = False
    if not web or not re.fullmatch("[!-~]{1,4000}", url):
        shown = re.sub("//.*@", "//***@", url)[:200]
        raise UserError(f"{where} must be http://HOST/... or https://HOST/..., but is {shown!r}; give another")
    if split.username is not None:
        raise UserError(f"{where} must hold no user name or password, but does; put them into ~/.netrc")


def _check_order(names: Sequence[str], where: str) -> None:
    """Raise UserError unless names in partaa, partab, ... are of one archive and in order, each once."""
    if not names:
        raise UserError(f"{where}: there must be at least one part, Dataset.tar.gz.partaa, but there is none; add it")
    stems = [found[1] for name in names if (found := PART_NAME.fullmatch(name))]
    wanted = [stems[0] + suffix for suffix in SUFFIXES] if stems else list(dict.fromkeys(names))
    for number, name in enumerate(names):
        if number >= len(wanted) or name != wanted[number]:
            right = repr(wanted[number]) if number < len(wanted) else "no more"
            raise UserError(
                f"{where}: part {number + 1} must be {right}, but is {name[:80]!r}; give the parts of one archive, "
                "partaa, partab and on, each once and in this order"
            )


def is_page(path: Path) -> bool:
    """Whether a file is a web page: what a login, a notice or a proxy's excuse looks like when it was saved."""
    with path.open("rb") as file:
        return re.match(rb"\s*<(!doctype|html)", file.read(200), re.IGNORECASE) is not None
