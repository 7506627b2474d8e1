"""A case: a file is mutated and read, and what comes of it is judged."""

import json
import random
import resource
import shutil
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.examples import Example
from benchmarks.fuzz.mutations import mutated, replace_path, restore
from speaker.common.cli import printable
from speaker.common.errors import UserError

LIMIT_S, LIMIT_BYTES = 10, 1 << 30
PATHS = 0.1  # share of the cases in which something else is put in the file's place
FAILURES = ("exception", "wrong", "hang", "memory", "crash")
VERDICTS = ("refused", "same", "other", *FAILURES)  # same: as before; other: as no checksum tells
FFMPEG = "must be decodable"  # what it refuses as too much it never asked for
NO_MEMORY = ("must fit into memory", "annot allocate memory", "MemoryError", "bad allocation")


@dataclass(frozen=True)
class Verdict:
    """What became of a case."""

    number: int
    form: str
    mutation: str
    kind: str
    said: str = ""


class Bench:
    """The examples in a folder of its own, in which cases are run."""

    def __init__(self, root: Path, examples: list[Example], seed: int) -> None:
        self._root, self._examples, self._seed = root, examples, seed
        self._whole = {
            each.name: (root / each.folder / each.file).read_bytes() for each in examples
        }
        self._value = {}
        for each in examples:
            self._value[each.name] = each.read(root / each.folder)
            self._tidy(each)

    def limit_memory(self) -> None:
        """Let this process have LIMIT_BYTES more than it has."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def form(self, number: int) -> str:
        """Return the format of a case."""
        return self._examples[number % len(self._examples)].name

    def run(self, number: int, is_raising: bool = False) -> Verdict:
        """Run a case, and put all back as it was."""
        example = self._examples[number % len(self._examples)]
        draw = random.Random(f"{self._seed}:{number}")  # noqa: S311  # mutations, not secrets
        path = self._root / example.folder / example.file
        whole = self._whole[example.name]
        try:
            mutation = self._mutate(example, path, draw)
            return Verdict(number, example.name, mutation, *self._judge(example, is_raising))
        finally:
            restore(path, whole)
            self._tidy(example)

    def _mutate(self, example: Example, path: Path, draw: random.Random) -> str:
        if draw.random() < PATHS:
            return replace_path(path, draw)
        whole = self._whole[example.name]
        mutation, data = mutated(example.inside(whole), example.kind, draw)
        path.write_bytes(example.around(whole, data))
        return mutation

    def _judge(self, example: Example, is_raising: bool) -> tuple[str, str]:
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = example.read(self._root / example.folder)
        except UserError as error:
            if any(words in str(error) for words in NO_MEMORY) and FFMPEG not in str(error):
                return "memory", str(error)
            return "refused", printable(error)  # as run_cli prints it
        except MemoryError:
            return "memory", traceback.format_exc()[-2_000:]
        except Exception as error:  # that is what is looked for
            if is_raising:
                raise
            return "exception", f"{type(error).__name__} {traceback.format_exc()[-2_000:]}"
        if time.process_time() - began > LIMIT_S:
            return "hang", ""
        if value == self._value[example.name]:
            return "same", ""
        path = self._root / example.folder / example.file
        is_told = example.is_sealed and not is_unsealed(path)
        return ("wrong" if is_told else "other"), ""

    def _tidy(self, example: Example) -> None:
        """Remove what reading has written."""
        for name in ("out", ".out.partial", ".out.lock", "models"):
            path = self._root / example.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            (self._root / example.folder / "models").rmdir()


def is_unsealed(path: Path) -> bool:
    """Tell whether a record has no seal, as those of older programs: then nothing can be told."""
    if not path.suffix.startswith(".json"):
        return False
    data = path.read_bytes()
    return any(map(_lacks_seal, (data, *data.splitlines())))


def _lacks_seal(text: bytes) -> bool:
    try:
        return json.loads(text).get("sha256", "") == ""
    except (ValueError, AttributeError, RecursionError):
        return False
