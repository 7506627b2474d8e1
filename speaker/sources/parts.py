"""The parts of the homework's archive: their names, URLs and order, as a manifest,
a list of URLs or a folder says.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from urllib.parse import urlsplit

from speaker.common.errors import UserError
from speaker.common.files import parse_json, read_bounded, real_path, recognize_file, what_is_at
from speaker.data.corpus import PLAIN_NAME, corpora_near, is_corpus

MAX_PART_BYTES = 64 << 30
MAX_MANIFEST_BYTES = 1 << 20
SUFFIXES = tuple(map("".join, product(ascii_lowercase, repeat=2)))
PART_NAME = re.compile(r"(.+part)[a-z]{2}", re.DOTALL)
WHOLE_NAME = re.compile(r".+\.(?:tar\.gz|tgz|zip)", re.DOTALL | re.IGNORECASE)
NOT_A_PART = {"a web page", "a Git LFS pointer", "an empty file"}


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
    """Read `{"parts": [{"url": ..., "size": ..., "sha256": ...}, ...]}`;
    size and sha256 may be left out.

    Raises UserError, which names the file, the key and the rule.
    """
    value = parse_json(read_bounded(path, MAX_MANIFEST_BYTES), path)
    entries = _object(value, "parts", (), str(path))["parts"]
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: parts must be a list, but is {type(entries).__name__}; list the parts' URLs "
            "in it"
        )
    parts = tuple(_read_entry(entry, f"{path}: parts[{i}]") for i, entry in enumerate(entries))
    _check_order([part.name for part in parts], f"{path}: parts")
    return parts


def parts_of_urls(urls: Sequence[str]) -> tuple[Part, ...]:
    """Return the parts at `urls`, which must be in the archive's order."""
    parts = tuple(Part(url, _name(url, f"URL {i}")) for i, url in enumerate(urls, 1))
    _check_order([part.name for part in parts], "the URLs")
    return parts


def find_parts(folder: Path) -> list[Path]:
    """Return the parts of the archive in a folder, in order, or the one file that holds it whole.

    These are `*.partaa`, `*.partab` and so on, or a `.tar.gz` or `.zip`; such a file may be given
    itself. Raises UserError when a part is missing, doubled or of another archive, and says what a
    folder without an archive holds. A last part that is missing shows only when the archive ends
    early.
    """
    if folder.is_file() and WHOLE_NAME.fullmatch(folder.name):
        return [_checked_part(folder)]
    if not folder.is_dir():
        held = f"give the folder that holds {folder.name}" if folder.is_file() else "give another"
        rule = "--parts must be a folder with the archive's parts, or the archive in one file"
        raise UserError(f"{rule}, but {folder} {what_is_at(folder)}; {held}")
    parts, wholes = _candidates(folder)
    if not parts and not wholes:
        raise UserError(_nothing_in(folder))
    return [_checked_part(folder / name) for name in _choose(folder, parts, wholes)]


def _candidates(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names in a folder that are those of parts, in order, and of whole archives."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    parts = [name for name in names if PART_NAME.fullmatch(name)]
    parts.sort(key=lambda name: (name[-2:], name))
    return parts, [name for name in names if WHOLE_NAME.fullmatch(name)]


def _choose(folder: Path, parts: list[str], wholes: list[str]) -> list[str]:
    """Return the names of the files to unpack, in order."""
    if not parts:
        if len(wholes) > 1:
            files = " or ".join(shlex.quote(str(folder / name)) for name in wholes[:3])
            rule = f"{folder}: --parts must hold one archive, but holds {len(wholes)}"
            raise UserError(f"{rule}; give the right one: {files}")
        return wholes
    merged = parts[0].removesuffix(".partaa")
    if merged not in wholes:
        _check_order(parts, str(folder))
        return parts
    size = (folder / merged).stat().st_size
    total = sum((folder / name).stat().st_size for name in parts)
    if size != total:
        rule = f"{folder}: the parts and {merged} must be one archive"
        found = f"the parts have {total:,} bytes in all and {merged} has {size:,}"
        smaller = "the parts" if total < size else merged
        raise UserError(f"{rule}, but {found}; move {smaller} away if cut, or else the other")
    return [merged]


def _checked_part(path: Path) -> Path:
    """Return the path of a part if it can be one."""
    if not path.is_file():
        rule = f"{path}: a part must be a regular file, but this {what_is_at(path)}"
        raise UserError(f"{rule}; put the file there")
    kind, advice = recognize_file(path) or ("", "")
    if kind in NOT_A_PART:
        raise UserError(f"{path}: a part must be a piece of an archive, but is {kind}; {advice}")
    return path


def _nothing_in(folder: Path) -> str:
    """Return what a folder holds that holds no archive, and what to type."""
    rule = f"{folder}: there must be at least one part, Dataset.tar.gz.partaa, or the whole archive"
    if corpora := [folder] if is_corpus(folder) else corpora_near(folder):
        there = shlex.quote(str(corpora[0]))
        advice = f"type python -m speaker check {there}"
        return f"{rule}, but the corpus is unpacked already in {there}; {advice}"
    for near in (*sorted(folder.iterdir()), real_path(folder).parent):
        if near.is_dir() and not near.name.startswith(".") and any(_candidates(near)):
            return f"{rule}, but these are in {near}; give --parts {shlex.quote(str(near))}"
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3:,} more" if names[3:] else "")
    tars = [name for name in names if name.lower().endswith(".tar")]
    advice = f"type gzip {shlex.quote(str(folder / tars[0]))}" if tars else "add it"
    return f"{rule}, but there is {shown or 'nothing'}; {advice}"


def _object(value: object, needed: str, others: Sequence[str], where: str) -> dict[str, Any]:
    """Return a JSON object that has the key `needed`, and none but that and `others`."""
    if not isinstance(value, dict):
        raise UserError(
            f"{where} must be an object, but is {type(value).__name__}; see the README for the "
            "format"
        )
    if needed not in value:
        raise UserError(f"{where}: the key {needed!r} is missing; add it")
    if unknown := sorted(set(value) - {needed, *others}):
        names = ", ".join((needed, *others))
        raise UserError(
            f"{where}: the keys must be of {names}, but one is {unknown[0][:80]!r}; remove it"
        )
    return value


def _read_entry(value: object, where: str) -> Part:
    entry = _object(value, "url", ("size", "sha256"), where)
    url, size, sha256 = entry["url"], entry.get("size"), entry.get("sha256")
    if not isinstance(url, str):
        raise UserError(f"{where}.url must be text, but is {type(url).__name__}; fix it")
    if size is not None and not (type(size) is int and 1 <= size <= MAX_PART_BYTES):
        raise UserError(
            f"{where}.size must be a whole number from 1 to {MAX_PART_BYTES}, but is "
            f"{str(size)[:20]}; fix it"
        )
    if sha256 is not None and not (
        isinstance(sha256, str) and re.fullmatch("[0-9A-Fa-f]{64}", sha256)
    ):
        raise UserError(
            f"{where}.sha256 must be 64 hex digits, but is {str(sha256)[:80]!r}; fix it"
        )
    return Part(url, _name(url, f"{where}.url"), size, sha256.lower() if sha256 else None)


def _name(url: str, where: str) -> str:
    """Return the file name at the end of a URL, both checked."""
    validate_url(url, where)
    name = urlsplit(url).path.rpartition("/")[2]
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"{where} must end in a plain file name, but ends in {name[:80]!r}; give the URL of a "
            "part"
        )
    return name


def validate_url(url: str, where: str) -> None:
    """Raise UserError unless `url` is one of http or https, with a host and without a password."""
    try:
        split = urlsplit(url)
        web = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:  # a port or an address that is not one
        web = False
    if not web or not re.fullmatch("[!-~]{1,4000}", url):
        shown = re.sub("//.*@", "//***@", url)[:200]
        raise UserError(
            f"{where} must be http://HOST/... or https://HOST/..., but is {shown!r}; give another"
        )
    if split.username is not None:
        raise UserError(
            f"{where} must hold no user name or password, but does; put them into ~/.netrc"
        )


def _check_order(names: Sequence[str], where: str) -> None:
    """Raise UserError unless names in partaa, partab,
    ... are of one archive and in order, each once.
    """
    if not names:
        raise UserError(
            f"{where}: there must be at least one part, Dataset.tar.gz.partaa, but there is none; "
            "add it"
        )
    stems = [found[1] for name in names if (found := PART_NAME.fullmatch(name))]
    wanted = [stems[0] + suffix for suffix in SUFFIXES] if stems else list(dict.fromkeys(names))
    for number, name in enumerate(names):
        if number >= len(wanted) or name != wanted[number]:
            right = repr(wanted[number]) if number < len(wanted) else "no more"
            raise UserError(
                f"{where}: part {number + 1} must be {right}, but is {name[:80]!r}; give the parts "
                "of one archive, partaa, partab and so on, each once and in this order"
            )
