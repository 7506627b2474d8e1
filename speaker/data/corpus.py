"""A corpus: a folder in the homework's layout, read and checked."""

import hashlib
import io
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from speaker.common.errors import UserError
from speaker.common.files import parse_json, read_bounded

T = TypeVar("T")
Listing = Iterable[tuple[str, int]]  # feature_path and mel_len of utterances

MANIFESTS = ("mapping.json", "metadata.json", "testdata.json")
TEST_LABELS = (
    "testlabels.csv"  # beside the manifests where the test utterances' speakers are known; the homework's are not
)
MOST_FRAMES = 360_000  # of one utterance: an hour
MOST_MELS = 1_000
MOST_MANIFEST_BYTES = 256 << 20
LARGEST_LOG_MEL = 1_000  # no float32 energy has such a logarithm; NaN and infinity fail the same comparison
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class UtteranceError(UserError):
    """A rule that one utterance of a corpus breaks; `kind` is the rule's short name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


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
    corpus, faults = read_manifests(folder)
    if faults:
        more = f" ({len(faults) - 1:,} more: python -m speaker check {folder})" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{more}")
    return corpus


def read_manifests(folder: Path) -> tuple[Corpus, list[UtteranceError]]:
    """Read the manifests of a corpus; return it without the utterances whose entries are wrong, and what is wrong.

    Raises UserError where a manifest as a whole is wrong.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f"a corpus must be a folder, but {folder} is none; give the folder that holds metadata.json")
    texts = [_read_manifest(folder / name) for name in MANIFESTS]
    mapping, metadata, testdata = (
        _as(parse_json(text, folder / name), dict, str(folder / name))
        for text, name in zip(texts, MANIFESTS, strict=True)
    )
    speakers = _speakers(mapping, folder / "mapping.json")
    path = folder / "metadata.json"
    n_mels = _field(metadata, "n_mels", int, path)
    by_speaker = _field(metadata, "speakers", dict, path)
    if not 1 <= n_mels <= MOST_MELS:
        raise UserError(f"{path}: n_mels must be at least 1 and at most {MOST_MELS}, but got {str(n_mels)[:20]}")
    if set(by_speaker) != set(speakers):
        name = min(set(by_speaker) ^ set(speakers))
        raise UserError(
            f"{path}: its speakers must be those of mapping.json, but {name[:80]!r} is in only one of the two"
        )
    ids = {name: number for number, name in enumerate(speakers)}
    faults: list[UtteranceError] = []
    listed: dict[str, str] = {}
    utterances = [
        utterance
        for name, entries in by_speaker.items()
        for utterance in _utterances(entries, ids[name], f"{path}: speakers.{name}", listed, faults)
    ]
    path = folder / "testdata.json"
    if (test_mels := _field(testdata, "n_mels", int, path)) != n_mels:
        raise UserError(f"{path}: n_mels must be that of metadata.json, {n_mels}, but got {str(test_mels)[:20]}")
    test = _utterances(_field(testdata, "utterances", list, path), None, f"{path}: utterances", {}, faults)
    key = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()
    return Corpus(folder, n_mels, speakers, tuple(utterances), tuple(test), key), faults


def write_manifests(folder: Path, n_mels: int, labelled: Mapping[str, Listing], test: Listing) -> None:
    """Write the three manifests of a corpus whose speakers' ids are their places in `labelled`."""
    ids = {name: number for number, name in enumerate(labelled)}
    speakers = {name: _entries(listing) for name, listing in labelled.items()}
    contents = (
        {"speaker2id": ids, "id2speaker": {str(number): name for name, number in ids.items()}},
        {"n_mels": n_mels, "speakers": speakers},
        {"n_mels": n_mels, "utterances": _entries(test)},
    )
    for name, content in zip(MANIFESTS, contents, strict=True):
        (folder / name).write_text(json.dumps(content, indent=1))


def read_mels(corpus: Corpus, utterance: Utterance) -> Tensor:
    """Return one utterance's log-mel features, float32 (frames, n_mels).

    Only data is read, never code, and no more memory is taken than the manifest's entry warrants. The archive's
    checksums are verified first, since torch itself loads flipped bits silently. Raises UtteranceError for a file that
    is missing, broken or not as the entry says.
    """
    path = corpus.folder / utterance.feature_path
    wanted = (utterance.frames, corpus.n_mels)
    try:
        data = read_bounded(path, most=16 * utterance.frames * corpus.n_mels + 65_536)
    except UserError as error:
        raise UtteranceError("feature file that is missing or no file", str(error)) from error
    mels = _load_tensor(data, path)
    if fault := _tensor_fault(mels, wanted):
        raise UtteranceError("tensor of another kind than the entry says", f"{path}: {fault}; fetch this file again")
    mels = mels.detach().to(torch.float32).contiguous()
    least, most = mels.aminmax()  # NaN, if there is one
    if not (least > -LARGEST_LOG_MEL and most < LARGEST_LOG_MEL):
        text = f"{path}: a log-mel must lie within +-{LARGEST_LOG_MEL}, but one does not; fetch this file again"
        raise UtteranceError("value that is no log-mel", text)
    return mels


def _load_tensor(data: bytes, path: Path) -> Tensor:
    """Return the tensor in the bytes of a file of torch.save: a zip archive, stored, whose checksums must be right."""
    damaged, foreign = "feature file that is damaged", "feature file without a tensor"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UtteranceError(damaged, f"{path}: must be stored, but is compressed; save it with torch.save")
            if (member := archive.testzip()) is not None:
                text = f"{path}: the checksum of {member[:80]!r} does not match; fetch this file again"
                raise UtteranceError(damaged, text)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, struct.error) as error:
        text = f"{path}: must be a whole file of torch.save, but cannot be read ({str(error)[:80]}); fetch it again"
        raise UtteranceError(damaged, text) from error
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a dozen types; each means the same here
        text = f"{path}: must hold a tensor, but cannot be read as one ({type(error).__name__}); fetch this file again"
        raise UtteranceError(foreign, text) from error
    if not isinstance(value, Tensor):
        text = f"{path}: must hold a tensor, but holds {type(value).__name__}; fetch this file again"
        raise UtteranceError(foreign, text)
    return value


def _tensor_fault(mels: Tensor, wanted: tuple[int, int]) -> str:
    """Return what is wrong with a tensor that must hold log-mels of a shape, or nothing."""
    if mels.layout is not torch.strided or not mels.is_floating_point() or mels.device.type != "cpu":
        return f"must hold dense real numbers, but holds {mels.layout} {mels.dtype} on {mels.device}"
    if tuple(mels.shape) != wanted:
        return f"must be of shape {wanted}, but is {tuple(mels.shape)[:9]}"
    if mels.numel() * mels.element_size() > mels.untyped_storage().nbytes():
        return f"must hold {mels.numel():,} numbers, but repeats a few"
    return ""


def _read_manifest(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_MANIFEST_BYTES)
    except UserError as error:
        raise UserError(f"{error}; a corpus holds {', '.join(MANIFESTS)} and the feature files") from error


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


def _utterances(
    entries: object, speaker: int | None, where: str, listed: dict[str, str], faults: list[UtteranceError]
) -> list[Utterance]:
    """Return the utterances whose entries are right; append the other entries' faults. `listed` says what was where."""
    found = []
    for number, entry in enumerate(_as(entries, list, where)):
        place = f"{where}[{number}]"
        try:
            utterance = _utterance(entry, speaker, place)
            if (before := listed.setdefault(utterance.feature_path, place)) != place:
                kind = "file listed twice" if before.startswith(f"{where}[") else "file under two speakers"
                text = f"{place}: a file must be listed once, but {utterance.feature_path} is {before}, too"
                raise UtteranceError(kind, text)
            found.append(utterance)
        except UtteranceError as fault:
            faults.append(fault)
        except UserError as error:
            faults.append(UtteranceError("entry of another form", str(error)))
    return found


def _utterance(entry: object, speaker: int | None, where: str) -> Utterance:
    record = _as(entry, dict, where)
    name = _field(record, "feature_path", str, where)
    frames = _field(record, "mel_len", int, where)
    if not PLAIN_NAME.fullmatch(name):
        text = f"{where}.feature_path must be a plain file name in the corpus folder, but is {name[:80]!r}"
        raise UtteranceError("feature_path that is no plain file name", text)
    if not 1 <= frames <= MOST_FRAMES:
        text = f"{where}.mel_len must be at least 1 and at most {MOST_FRAMES}, but is {str(frames)[:20]}"
        raise UtteranceError("mel_len out of range", text)
    return Utterance(name, frames, speaker)


def _entries(listing: Listing) -> list[dict[str, object]]:
    return [{"feature_path": name, "mel_len": frames} for name, frames in listing]
