"""A corpus: a folder in the homework's layout, read and checked."""

import functools
import hashlib
import io
import json
import os
import pickletools
import re
import shlex
import struct
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from speaker.common.errors import UserError
from speaker.common.files import (
    HEAD,
    parse_json,
    read_bounded,
    real_path,
    recognize,
    what_is_at,
)
from speaker.common.zips import MEMBER

T = TypeVar("T")
Listing = Iterable[tuple[str, int]]  # feature_path and mel_len of utterances

MANIFESTS = ("mapping.json", "metadata.json", "testdata.json")
TEST_LABELS = (
    # Beside the manifests where the test utterances' speakers are known; the homework's are not.
    "testlabels.csv"
)
MAX_UTTERANCE_FRAMES = 360_000  # of one utterance: an hour
MAX_MELS = 1_000
MAX_MANIFEST_BYTES = 256 << 20
# Of a file: its tensor may be a slice of a larger one, which is saved whole.
MAX_FEATURE_BYTES = 256 << 20
FEW_MEMBERS = 1 << 20  # bytes of a file that cannot list many of them
MAX_MEMBERS = 100  # of a file of torch.save, which has six
MAX_PICKLE_BYTES, MAX_OPCODES = 4_096, 500  # of a tensor, which takes about 200 and 60
TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage"
)
INTEGERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
LEGACY_SIZES = {"FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2}
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of PyTorch before 1.6
# No float32 energy has such a logarithm; NaN and infinity fail the same comparison.
MAX_LOG_MEL = 1_000
NEW_MAPPING = (  # Python that numbers the speakers of metadata.json; its argument is the folder
    "import json,sys;f=sys.argv[1]+'/';s=list(json.load(open(f+'metadata.json','rb'))['speakers']);"
    "json.dump({'speaker2id':{n:i for i,n in enumerate(s)},'id2speaker':dict(enumerate(s))},"
    "open(f+'mapping.json','w'))"
)
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class UtteranceError(UserError):
    """A rule that one utterance of a corpus breaks; `kind` is the rule's short name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording: its file, number of frames, and speaker's id (None in the test set)."""

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
        """The folder's name, fit for a file; the parent's before it
        where it is the homework's own, `Dataset`.
        """
        parts = self.folder.parts[-2:] if self.folder.name == "Dataset" else self.folder.parts[-1:]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))[:60].strip("-.") or "corpus"


def read_corpus(folder: Path) -> Corpus:
    """Read and check the three manifests of a corpus.

    Layout: `mapping.json`, `metadata.json` and `testdata.json` of the homework (600 VoxCeleb2
    speakers), each feature file a float32 tensor (mel_len, n_mels). Raises UserError, which names
    the file, the key and the rule.
    """
    corpus, faults = read_manifests(folder)
    if faults:
        more = (
            f" ({len(faults) - 1:,} more: python -m speaker check {folder})"
            if len(faults) > 1
            else ""
        )
        raise UserError(f"{faults[0]}{more}")
    return corpus


def read_manifests(folder: Path) -> tuple[Corpus, list[UtteranceError]]:
    """Read the manifests of a corpus; return it without the utterances whose entries are wrong,
    and what is wrong.

    Raises UserError where a manifest as a whole is wrong.
    """
    folder = corpus_folder(folder)
    texts = [_read_manifest(folder / name) for name in MANIFESTS]
    mapping, metadata, testdata = (
        _as(parse_json(text, folder / name), dict, str(folder / name))
        for text, name in zip(texts, MANIFESTS, strict=True)
    )
    speakers = _speakers(mapping, folder / "mapping.json")
    path = folder / "metadata.json"
    n_mels = _field(metadata, "n_mels", int, path)
    by_speaker = _field(metadata, "speakers", dict, path)
    if not 1 <= n_mels <= MAX_MELS:
        raise UserError(
            f"{path}: n_mels must be at least 1 and at most {MAX_MELS}, but got {str(n_mels)[:20]}"
        )
    _check_speakers(set(by_speaker), set(speakers), path)
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
        raise UserError(
            f"{path}: n_mels must be that of metadata.json, {n_mels}, but got {str(test_mels)[:20]}"
        )
    test = _utterances(
        _field(testdata, "utterances", list, path), None, f"{path}: utterances", {}, faults
    )
    key = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()
    return Corpus(folder, n_mels, speakers, tuple(utterances), tuple(test), key), faults


def write_manifests(
    folder: Path, n_mels: int, labelled: Mapping[str, Listing], test: Listing
) -> None:
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

    Only data is read, never code, and at most MAX_FEATURE_BYTES. The checksums of a file of
    torch.save are verified first, since torch itself loads flipped bits silently; the format from
    before PyTorch 1.6 has none, so that a flipped bit in it goes unnoticed. Raises UtteranceError
    for a file that is missing, broken or not as the entry says.
    """
    path = corpus.folder / utterance.feature_path
    wanted = (utterance.frames, corpus.n_mels)
    try:
        data = read_bounded(path, MAX_FEATURE_BYTES)
    except UserError as error:
        raise UtteranceError("feature file that is missing or not a file", str(error)) from error
    mels = _load_tensor(data, path)
    if fault := _tensor_fault(mels, wanted):
        text = f"{path}: {fault}; take this file and metadata.json from the same source"
        raise UtteranceError("tensor of another kind than the entry says", text)
    mels = mels.detach().to(torch.float32).contiguous()
    if mels.untyped_storage().nbytes() > 2 * mels.nbytes:
        mels = mels.clone()  # a slice keeps all that it was cut from in memory
    least, most = mels.aminmax()  # NaN, if there is one
    if not (least > -MAX_LOG_MEL and most < MAX_LOG_MEL):
        text = f"{path}: a log-mel must lie within +-{MAX_LOG_MEL}, but one does not"
        raise UtteranceError("value that is not a log-mel", f"{text}; make this file again")
    return mels


def is_legacy(data: bytes) -> bool:
    """Whether a file that starts with `data` is in the format of torch.save before 1.6."""
    return data.startswith(LEGACY)


def _load_tensor(data: bytes, path: Path) -> Tensor:
    """Return the tensor in the bytes of a file of torch.save, once they are known to be safe."""
    foreign, again = (
        "feature file without a tensor",
        "save one tensor alone into it with torch.save",
    )
    legacy = is_legacy(data)
    fault = _legacy_fault(data) if legacy else _pickle_fault(_checked_pickle(data, path))
    if fault:
        raise UtteranceError(
            foreign, f"{path}: must hold a dense tensor alone, but {fault}; {again}"
        )
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a dozen types; each means the same here
        fault = f"cannot be read as one ({type(error).__name__})"
        text = f"{path}: must hold a tensor, but {fault}; {again}"
        raise UtteranceError(foreign, text) from error
    if not isinstance(value, Tensor):
        text = f"{path}: must hold a tensor, but holds {type(value).__name__}; {again}"
        raise UtteranceError(foreign, text)
    return value


def _checked_pickle(data: bytes, path: Path) -> bytes:
    """Return the pickle in a file of torch.save: a zip, stored, whose checksums must be right."""
    damaged = "feature file that is damaged"
    # zipfile makes an object of each member before any can be counted; small files have not many
    if len(data) > FEW_MEMBERS and data.count(MEMBER) > MAX_MEMBERS:
        text = f"{path}: must be a file of torch.save, but has more than {MAX_MEMBERS} members"
        raise UtteranceError(damaged, f"{text}; save one tensor alone into it with torch.save")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                text = f"{path}: must be stored, but is compressed; save it with torch.save"
                raise UtteranceError(damaged, text)
            if (member := archive.testzip()) is not None:
                text = f"{path}: the checksum of {member[:80]!r} does not match"
                raise UtteranceError(damaged, f"{text}; fetch this file again")
            names = [name for name in archive.namelist() if name.lower().endswith("data.pkl")]
            return archive.read(names[0]) if len(names) == 1 else b""
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, RuntimeError, struct.error) as error:
        found = None if data.startswith(b"PK") else recognize(data[:HEAD])
        reason, advice = found or (f"cannot be read ({str(error)[:80]})", "fetch it again")
        reason = f"is {reason}" if found else reason
        text = f"{path}: must be a whole file of torch.save, but {reason}; {advice}"
        raise UtteranceError(damaged, text) from error


@dataclass
class _Pickled:
    """What a pickle says of itself, without running it."""

    names: list[str]  # of what it would call
    numbers: list[int]
    storages: int


def _scan(stream: io.BytesIO) -> _Pickled:
    """Read the next pickle in a stream. Raises ValueError for one that is broken or long."""
    found = _Pickled([], [], 0)
    for count, (code, value, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OPCODES:
            raise ValueError("a tensor's pickle is shorter")
        if code.name == "GLOBAL":
            found.names.append(str(value))
        elif code.name in INTEGERS:
            found.numbers.append(int(value or 0))
        found.storages += code.name == "BINPERSID"
    return found


def _tensor_pickle_fault(pickled: _Pickled) -> str:
    """Return why a pickle is not that of one dense tensor, or nothing.

    torch's own list of what may be loaded is longer: some of it takes memory that no data fill.
    """
    if odd := [name for name in pickled.names if not TENSOR_GLOBALS.fullmatch(name)]:
        return f"holds {odd[0].replace(' ', '.')[:80]!r}"
    return "" if pickled.storages == 1 else f"holds {pickled.storages} tensors"


@functools.lru_cache(maxsize=4_096)  # tensors of one shape have one pickle
def _pickle_fault(data: bytes) -> str:
    """Return why the pickle in a file of torch.save is not that of one dense tensor, or nothing."""
    if len(data) > MAX_PICKLE_BYTES:
        return "holds more"
    try:
        return _tensor_pickle_fault(_scan(io.BytesIO(data)))
    except ValueError as error:
        return f"cannot be read as one ({str(error)[:80]})"


def _legacy_fault(data: bytes) -> str:
    """Return why a file of torch.save before 1.6 does not hold one whole dense tensor, or nothing.

    It is five pickles (magic number, version, system, the tensor, its storage's key), and then the
    storage: how many values, in 8 bytes, and the values. torch takes memory as the fourth pickle
    says before it reads them, so no number there may be larger than that of the values.
    """
    stream = io.BytesIO(data)
    try:
        _, _, _, pickled, _ = [_scan(stream) for _ in range(5)]
    except ValueError as error:
        return f"cannot be read as one ({str(error)[:80]})"
    if fault := _tensor_pickle_fault(pickled):
        return fault
    storage = [name.rpartition(" ")[2] for name in pickled.names if name.endswith("Storage")]
    size = LEGACY_SIZES.get(storage[0]) if len(storage) == 1 else None
    if size is None:
        return f"holds a {' and a '.join(storage)[:80] or 'nameless storage'}"
    left = len(data) - stream.tell()
    values = int.from_bytes(stream.read(8), "little")
    if left != 8 + size * values:
        return f"is cut or has more at its end ({left:,} bytes for {values:,} values)"
    if any(not 0 <= number <= values for number in pickled.numbers):
        return f"declares other sizes than that of its {values:,} values"
    return ""


def _tensor_fault(mels: Tensor, wanted: tuple[int, int]) -> str:
    """Return what is wrong with a tensor that must hold log-mels of a shape, or nothing."""
    if (
        mels.layout is not torch.strided
        or not mels.is_floating_point()
        or mels.device.type != "cpu"
    ):
        return (
            f"must hold dense real numbers, but holds {mels.layout} {mels.dtype} on {mels.device}"
        )
    if tuple(mels.shape) != wanted:
        return f"must be of shape {wanted}, but is {tuple(mels.shape)[:9]}"
    if mels.numel() * mels.element_size() > mels.untyped_storage().nbytes():
        return f"must hold {mels.numel():,} numbers, but repeats a few"
    return ""


def corpus_folder(folder: Path) -> Path:
    """Return a corpus's folder without links. Raises UserError, which names the one that was meant.

    A folder with some of the manifests is taken for a corpus: what it lacks is said later.
    """
    real = real_path(folder)
    if any(os.path.lexists(real / name) for name in MANIFESTS):
        return real
    near = corpora_near(folder)
    if not real.is_dir():
        advice = _instead(near, folder) if near else "give the folder that holds metadata.json"
        raise UserError(f"a corpus must be a folder, but {folder} {what_is_at(folder)}; {advice}")
    rule = f"{folder} must be a corpus, but holds none of {', '.join(MANIFESTS)}"
    if near:
        raise UserError(f"{rule}; {_instead(near, folder)}")
    verbs = "python -m speaker download, or prepare for your own recordings"
    raise UserError(f"{rule}; give the folder that holds them, or make one with {verbs}")


def corpora_near(folder: Path) -> list[Path]:
    """Return the corpora in the folders of a folder, or else the one that it lies in."""
    real = real_path(folder)
    if real.is_dir():
        with os.scandir(real) as entries:
            below = sorted(each.name for each in entries if is_corpus(real / each.name))
        if below:
            return [folder / name for name in below]
    above = real.parent if folder.name in ("", "..") else folder.parent
    return [above] if is_corpus(above) else []


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds the three manifests."""
    return all(os.path.isfile(folder / name) for name in MANIFESTS)


def _instead(near: list[Path], folder: Path) -> str:
    """Return what to type for a folder beside a corpus, or beside several."""
    names = " or ".join(shlex.quote(str(each)) for each in near[:3])
    there = "the corpus is in" if len(near) == 1 else "corpora are in"
    return f"{there} {names}: give that instead of {shlex.quote(str(folder))}"


def _read_manifest(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_MANIFEST_BYTES)
    except UserError as error:
        raise UserError(
            f"{error}; a corpus holds {', '.join(MANIFESTS)} and the feature files"
        ) from error


def _as(value: object, kind: type[T], where: str) -> T:
    if type(value) is not kind:
        raise UserError(f"{where} must be {kind.__name__}, but is {type(value).__name__}")
    return value


def _field(record: dict[str, Any], key: str, kind: type[T], where: object) -> T:
    if key not in record:
        raise UserError(f"{where}: the key {key!r} is missing")
    return _as(record[key], kind, f"{where}: {key}")


def _speakers(mapping: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the speakers by id, checked: ids are 0..n-1 and id2speaker is the inverse
    of speaker2id.
    """
    speaker2id = _field(mapping, "speaker2id", dict, path)
    id2speaker = _field(mapping, "id2speaker", dict, path)
    n = len(speaker2id)
    if n < 2:
        raise UserError(f"{path}: speaker2id must name at least 2 speakers, but names {n}")
    numbers = [number for number in speaker2id.values() if type(number) is int]
    if len(numbers) < n or set(numbers) != set(range(n)):
        raise UserError(f"{path}: the ids in speaker2id must be 0 to {n - 1}, each once")
    if id2speaker != {str(number): name for name, number in speaker2id.items()}:
        raise UserError(
            f"{path}: id2speaker must be the inverse of speaker2id, with the ids as text"
        )
    speakers = tuple(id2speaker[str(number)] for number in range(n))
    if odd := [name for name in speakers if not name or not name.isprintable()]:
        raise UserError(
            f"{path}: a speaker's name must be of printable characters, but is {odd[0][:80]!r}"
        )
    return speakers


def _check_speakers(listed: set[str], mapped: set[str], path: Path) -> None:
    """Raise UserError unless the speakers of metadata.json are those of mapping.json."""
    unlisted, unmapped = sorted(mapped - listed), sorted(listed - mapped)
    if not unlisted and not unmapped:
        return
    if same := {_plain(name) for name in unlisted} & {_plain(name) for name in unmapped}:
        first = next(name for name in unlisted if _plain(name) in same)
        raise UserError(
            f"{path}: must write a speaker's name as mapping.json does, but writes {first[:80]!r} "
            "in another Unicode form; save both in the form NFC"
        )
    lacks = [
        f"{lacking} lacks {len(names):,} of the {total:,} speakers of {having} (the first is "
        f"{names[0][:80]!r})"
        for lacking, names, total, having in (
            ("metadata.json", unlisted, len(mapped), "mapping.json"),
            ("mapping.json", unmapped, len(listed), "metadata.json"),
        )
        if names
    ]
    raise UserError(
        f"{path}: its speakers must be those of mapping.json, but {' and '.join(lacks)}; keep a "
        "copy of mapping.json and make one of metadata.json's speakers alone, with new ids, by: "
        f'python -c "{NEW_MAPPING}" {shlex.quote(str(path.parent))}'
    )


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _utterances(
    entries: object,
    speaker: int | None,
    where: str,
    listed: dict[str, str],
    faults: list[UtteranceError],
) -> list[Utterance]:
    """Return the utterances whose entries are right; append the other entries' faults.

    `listed` says what was where.
    """
    found = []
    for number, entry in enumerate(_as(entries, list, where)):
        place = f"{where}[{number}]"
        try:
            utterance = _utterance(entry, speaker, place)
            if (before := listed.setdefault(utterance.feature_path, place)) != place:
                kind = (
                    "file listed twice"
                    if before.startswith(f"{where}[")
                    else "file under two speakers"
                )
                name = utterance.feature_path
                text = f"{place}: a file must be listed once, but {name} is {before}, too"
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
        rule = f"{where}.feature_path must be a plain file name in the corpus folder"
        text = f"{rule}, but is {name[:80]!r}"
        raise UtteranceError("feature_path that is no plain file name", text)
    if not 1 <= frames <= MAX_UTTERANCE_FRAMES:
        rule = f"{where}.mel_len must be at least 1 and at most {MAX_UTTERANCE_FRAMES}"
        text = f"{rule}, but is {str(frames)[:20]}"
        raise UtteranceError("mel_len out of range", text)
    return Utterance(name, frames, speaker)


def _entries(listing: Listing) -> list[dict[str, object]]:
    return [{"feature_path": name, "mel_len": frames} for name, frames in listing]
