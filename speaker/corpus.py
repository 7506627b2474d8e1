"""A corpus: a folder in the homework's layout, read and checked; and the 90/10 split of its utterances."""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from speaker.errors import UserError
from speaker.seeding import permutation

T = TypeVar("T")

MANIFESTS = ("mapping.json", "metadata.json", "testdata.json")
MOST_FRAMES = 10_000_000  # of one utterance: more than a day
LARGEST_LOG_MEL = 1_000  # no float32 energy has such a logarithm; NaN and infinity fail the same comparison
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording: its file, its number of frames, and its speaker's id (None in the test set)."""

    feature_path: str
    frames: int
    speaker: int | None


@dataclass(frozen=True)
class Corpus:
    """The manifests of a corpus; the features stay in their files until they are read."""

    folder: Path
    n_mels: int
    speakers: tuple[str, ...]  # by id
    utterances: tuple[Utterance, ...]  # labelled, in the order of metadata.json
    test: tuple[Utterance, ...]  # in the order of testdata.json
    key: str  # sha256 of the manifests' bytes

    @property
    def name(self) -> str:
        """The folder's name, fit for a file; the parent's before it where it is the homework's own, `Dataset`."""
        parts = self.folder.parts[-2:] if self.folder.name == "Dataset" else self.folder.parts[-1:]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))[:60].strip("-.") or "corpus"


def read_corpus(folder: Path) -> Corpus:
    """Read and check the three manifests of a corpus.

    Layout: `mapping.json`, `metadata.json` and `testdata.json` of the homework (600 VoxCeleb2 speakers), each feature
    file a float32 tensor (mel_len, n_mels). Raises UserError, which names the file, the key and the rule.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f"a corpus must be a folder, but {folder} is none; give the folder that holds metadata.json")
    mapping, metadata, testdata = (_read_manifest(folder / name) for name in MANIFESTS)
    speakers = _speakers(mapping, folder / "mapping.json")
    path = folder / "metadata.json"
    n_mels = _field(metadata, "n_mels", int, path)
    by_speaker = _field(metadata, "speakers", dict, path)
    if n_mels < 1:
        raise UserError(f"{path}: n_mels must be at least 1, but got {n_mels}")
    if set(by_speaker) != set(speakers):
        name = min(set(by_speaker) ^ set(speakers))
        raise UserError(f"{path}: its speakers must be those of mapping.json, but {name!r} is in only one of the two")
    ids = {name: number for number, name in enumerate(speakers)}
    utterances = [
        _utterance(entry, ids[name], f"{path}: speakers.{name}[{i}]")
        for name, entries in by_speaker.items()
        for i, entry in enumerate(_as(entries, list, f"{path}: speakers.{name}"))
    ]
    if (more := len(utterances) - len({utterance.feature_path for utterance in utterances})) > 0:
        raise UserError(f"{path}: a file must be listed once, but {more} are listed again; remove the repetitions")
    path = folder / "testdata.json"
    if (test_mels := _field(testdata, "n_mels", int, path)) != n_mels:
        raise UserError(f"{path}: n_mels must be that of metadata.json, {n_mels}, but got {test_mels}")
    entries = _field(testdata, "utterances", list, path)
    test = [_utterance(entry, None, f"{path}: utterances[{i}]") for i, entry in enumerate(entries)]
    digest = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in MANIFESTS))
    return Corpus(folder, n_mels, speakers, tuple(utterances), tuple(test), digest.hexdigest())


def read_mels(corpus: Corpus, utterance: Utterance) -> Tensor:
    """Return one utterance's log-mel features, float32 (frames, n_mels).

    Only data is read, never code; the archive's checksums are verified first, since torch itself loads flipped bits
    silently. Raises UserError for a file that is missing, broken or not as the manifest says.
    """
    path = corpus.folder / utterance.feature_path
    wanted = (utterance.frames, corpus.n_mels)
    try:
        if not path.is_file():
            raise UserError(f"{path}: the manifest lists this file, but it is not there; fetch the corpus again")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (member := archive.testzip()) is not None:
                    raise UserError(f"{path}: the checksum of {member} does not match; fetch this file again")
        mels = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(mels, Tensor):
            raise UserError(f"{path}: must hold one tensor, but holds {type(mels).__name__}; fetch this file again")
        if tuple(mels.shape) != wanted:
            raise UserError(f"{path}: must be of shape {wanted}, but is {tuple(mels.shape)}; fetch this file again")
        if mels.layout is not torch.strided or not mels.is_floating_point():
            raise UserError(f"{path}: must hold dense real numbers, but holds {mels.dtype}; fetch this file again")
        mels = mels.detach().to(torch.float32).contiguous()
        within = bool((mels.abs() < LARGEST_LOG_MEL).all())
    except UserError:
        raise
    except Exception as error:  # torch.load raises a dozen types for a broken file; each means the same here
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"{path}: must hold one tensor, but cannot be read ({reason}); fetch this file again"
        ) from error
    if not within:
        raise UserError(
            f"{path}: a log-mel must lie within +-{LARGEST_LOG_MEL}, but one does not; fetch this file again"
        )
    return mels


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split n utterances at random into train, int(0.9 * n) of them, and valid, the rest (the homework's rule).

    Returns two int64 tensors of row numbers, each in rising order. Raises UserError when a part would be empty.
    """
    cut = int(0.9 * n)
    if not 0 < cut < n:
        raise UserError(f"a corpus must have at least 2 labelled utterances to split, but has {n}; add some")
    order = permutation(n, seed, "split")
    return order[:cut].sort().values, order[cut:].sort().values


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a corpus holds {', '.join(MANIFESTS)} and the feature files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from error
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must be JSON, but is not ({error}); fetch it again") from error
    return dict(_as(value, dict, str(path)))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _as(value: object, kind: type[T], where: str) -> T:
    if type(value) is not kind:
        raise UserError(f"{where} must be {kind.__name__}, but is {type(value).__name__}")
    return value


def _field(record: dict[str, Any], key: str, kind: type[T], where: object) -> T:
    if key not in record:
        raise UserError(f"{where}: the key {key!r} is missing")
    return _as(record[key], kind, f"{where}: {key}")


def _speakers(mapping: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the speakers by id, checked: ids are 0..n-1 and id2speaker is the inverse of speaker2id."""
    speaker2id = _field(mapping, "speaker2id", dict, path)
    id2speaker = _field(mapping, "id2speaker", dict, path)
    n = len(speaker2id)
    if n < 2:
        raise UserError(f"{path}: speaker2id must name at least 2 speakers, but names {n}")
    numbers = [number for number in speaker2id.values() if type(number) is int]
    if len(numbers) < n or set(numbers) != set(range(n)):
        raise UserError(f"{path}: the ids in speaker2id must be 0 to {n - 1}, each once")
    if id2speaker != {str(number): name for name, number in speaker2id.items()}:
        raise UserError(f"{path}: id2speaker must be the inverse of speaker2id, with the ids as text")
    speakers = tuple(id2speaker[str(number)] for number in range(n))
    if odd := [name for name in speakers if not name or not name.isprintable()]:
        raise UserError(f"{path}: a speaker's name must be of printable characters, but is {odd[0][:80]!r}")
    return speakers


def _utterance(entry: object, speaker: int | None, where: str) -> Utterance:
    record = _as(entry, dict, where)
    name = _field(record, "feature_path", str, where)
    frames = _field(record, "mel_len", int, where)
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(f"{where}.feature_path must be a plain file name in the corpus folder, but is {name[:80]!r}")
    if not 1 <= frames <= MOST_FRAMES:
        raise UserError(f"{where}.mel_len must be at least 1 and at most {MOST_FRAMES}, but is {str(frames)[:20]}")
    return Utterance(name, frames, speaker)
