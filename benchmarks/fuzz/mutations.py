"""Ways to spoil a file, each drawn from a seed: as bytes, as JSON, as lines, and as a path."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 3 << 30  # that a file is grown to, with holes
TOKEN = "@@token@@"  # noqa: S105  # stands for raw text in JSON
NASTY = (
    "", " ", "a\nb", "a\r\nb", "\x00", "\x1b[31m", "\u202e", "\ud800", "../../x", "/etc/passwd",
    ".", "uttr-x.pt", "a" * 5_000, "nan", "-1", "id1\tid2", "{}", "'; DROP TABLE runs; --",
)  # fmt: skip
RAW = (
    "NaN", "-Infinity", "1e999", "1e308", "-1", "0", "1", "2", "0.5", "true", "null", "[]", "{}",
    "[[]]", "9" * 30, "9" * 400, "9" * 5_000, "-" + "9" * 18, str(2**31), str(2**63), str(2**64),
    '[' * 200 + ']' * 200, "[" * 5_000 + "]" * 5_000, "[" * 100_000 + "]" * 100_000,
    '{"a":' * 900 + "1" + "}" * 900,
)  # fmt: skip


def mutated(data: bytes, kind: str, draw: random.Random) -> tuple[str, bytes]:
    """Return the name of a mutation and the bytes that it makes of a file of a kind: `json`,
    `lines` or anything else.
    """
    pools: dict[str, tuple[Callable[[bytes, random.Random], bytes], ...]] = {
        "json": (change_json,) * 12 + BYTES,
        "lines": (change_lines,) * 6 + BYTES,
    }
    change = draw.choice(pools.get(kind, BYTES))
    for _ in range(draw.choice((0, 0, 0, 1, 4))):
        data = change(data, draw)
    return change.__name__, change(data, draw)


def flip(data: bytes, draw: random.Random) -> bytes:
    """Flip a bit."""
    changed = bytearray(data)
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_early(data: bytes, draw: random.Random) -> bytes:
    """Flip a bit in the first 256 bytes, where headers are."""
    return flip(data[:256], draw) + data[256:]


def cut(data: bytes, draw: random.Random) -> bytes:
    """Cut the end off."""
    return data[: draw.randrange(len(data) + 1)]


def insert(data: bytes, draw: random.Random) -> bytes:
    """Insert random bytes."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 100))) + data[at:]


def remove(data: bytes, draw: random.Random) -> bytes:
    """Remove some bytes."""
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + draw.choice((1, 2, 4, 100)) :]


def swap(data: bytes, draw: random.Random) -> bytes:
    """Swap two pieces."""
    a, b, c, d = sorted(draw.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def extreme(data: bytes, draw: random.Random) -> bytes:
    """Put an extreme number somewhere."""
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    value = draw.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1)))
    at = draw.randrange(len(data) + 1)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def fill(data: bytes, draw: random.Random) -> bytes:
    """Fill a piece with one byte."""
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + bytes([draw.choice((0, 32, 255))]) * (b - a) + data[b:]


def repeat(data: bytes, draw: random.Random) -> bytes:
    """Repeat a piece."""
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    times = draw.choice((2, 10, 1_000))
    return data[:a] + data[a:b] * min(times, 1 + (1 << 20) // max(1, b - a)) + data[b:]


def empty(_data: bytes, draw: random.Random) -> bytes:
    """Leave nothing, or zeros."""
    return bytes(draw.choice((0, 0, 1, 1_000)))


BYTES = (
    flip, flip, flip, flip_early, cut, insert, remove, swap, extreme, extreme, fill, repeat, empty,
)  # fmt: skip


def change_json(data: bytes, draw: random.Random) -> bytes:
    """Change a value or a key, keeping JSON's form for the most part."""
    try:
        root = {"root": json.loads(data)}
    except (ValueError, RecursionError):
        return flip(data, draw)
    places = [*_places(root)]
    container, key = draw.choice(places)
    raw = draw.choice(RAW) if draw.random() < 0.6 else json.dumps(draw.choice(NASTY))
    action = draw.randrange(6)
    if action == 0 and container is not root:
        del container[key]
    elif action == 1 and isinstance(container, dict) and container is not root:
        container[draw.choice(NASTY)] = container.pop(key)
    elif action == 2:
        there, other = draw.choice(places)
        container[key], there[other] = there[other], container[key]
        if _is_circular(root):
            return flip(data, draw)
    elif action == 3 and isinstance(container, dict):  # twice
        container[TOKEN] = container[key]
        raw = json.dumps(key)
    elif action == 4:
        container[key] = draw.choice(NASTY)
    else:
        container[key] = TOKEN
    return json.dumps(root["root"]).replace(json.dumps(TOKEN), raw).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return where in a value others stand: (container, key or index)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in list(pairs):
        found.append((value, key))
        if isinstance(each, dict | list):
            found += _places(each)
    return found


def _is_circular(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def change_lines(data: bytes, draw: random.Random) -> bytes:
    """Change, swap, repeat or remove a line or a word of it."""
    lines = data.split(b"\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    action = draw.randrange(5)
    if action == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 1:
        lines.insert(at, lines[other])
    elif action == 2:
        del lines[at]
    else:
        words = lines[at].split(b",")
        words[draw.randrange(len(words))] = (
            draw.choice(NASTY).encode("utf-8", "surrogatepass") if action == 3 else b'"'
        )
        lines[at] = b",".join(words)
    return b"\n".join(lines)


def replace_path(path: Path, draw: random.Random) -> str:
    """Put something else where a file is: a link, a pipe, a folder, nothing, a file with holes;
    return what.
    """
    what = draw.choice(("loop", "device", "passwd", "pipe", "folder", "nothing", "holes", "holes"))
    if what == "holes":
        os.truncate(path, draw.choice((path.stat().st_size + 1, 1 << 24, 1 << 29, MOST_BYTES)))
        return what
    path.unlink()
    if what in ("loop", "device", "passwd"):
        path.symlink_to({"loop": path.name, "device": "/dev/zero", "passwd": "/etc/passwd"}[what])
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    return what


def restore(path: Path, data: bytes) -> None:
    """Put a file's own bytes back, whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(data)
