"""A whole example of every file format that the program reads, and what reads it."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load, save
from torch import Tensor

from benchmarks.fuzz import studies
from benchmarks.fuzz.sounds import ENDINGS, SEALED, write_sounds
from speaker.common.errors import UserError
from speaker.common.files import read_bounded
from speaker.common.records import parse_record
from speaker.config import TrialConfig
from speaker.data.corpus import MANIFESTS, read_corpus, read_mels, write_manifests
from speaker.data.labels import read_labels, write_csv
from speaker.data.pack import check_pack, open_pack
from speaker.data.protocol import Protocol
from speaker.model.saved_model import ModelCard, load_model, save_model
from speaker.sources import extraction
from speaker.sources.audio import read_sound
from speaker.sources.demo import draw_voice, synthesize
from speaker.sources.homework import unpack_parts
from speaker.sources.http import MAX_SOURCE_BYTES, _Source
from speaker.sources.parts import find_parts, read_manifest
from speaker.sources.recordings import Recording, find_recordings
from speaker.training.checkpoint import ABOUT, Checkpoint, identity
from speaker.training.saved_state import Expected
from speaker.training.train import train

POINT = TrialConfig(
    d_model=8, nhead=2, dim_feedforward=8, batch_size=4, segment_len=8, steps=6, warmup_steps=1,
    valid_every=2,
)  # fmt: skip
SPEAKERS = ("id1", "id2", "id3")


@dataclass(frozen=True)
class Example:
    """A file in a folder that `read` reads, to something that can be compared.

    It `is_sealed` where a checksum lies over what it says. `inside` gets out of the file what is to
    be mutated, and `around` makes a file of that again, sealed anew.
    """

    name: str
    folder: str
    file: str
    read: Callable[[Path], object]
    kind: str = "bytes"
    is_sealed: bool = False
    inside: Callable[[bytes], bytes] = bytes
    around: Callable[[bytes, bytes], bytes] = lambda _whole, inner: inner


def make_all(root: Path) -> list[Example]:
    """Write the examples into folders of `root`, and return them."""
    write_corpus(root / "corpus")
    corpus = read_corpus(root / "corpus")
    pack = open_pack(corpus, root / "corpus" / "packs")
    about = (SPEAKERS, pack.digest)
    checkpoint = Keen(root / "checkpoint" / "c", identity(POINT, pack, Protocol(), torch.float32))
    result = train(POINT, pack, Protocol(), lambda step, _: step == 4, checkpoint=checkpoint)
    save_model(root / "model", result.weights, POINT, 40, *about)
    (root / "model" / "source.json").write_text('{"run": "a", "version": 1}')
    write_sounds(root / "audio")
    recordings = _write_journal(root / "journal")
    _write_archives(root)
    parts = {
        "parts": [{"url": f"https://x.org/a.parta{a}", "size": 9, "sha256": "a" * 64} for a in "ab"]
    }
    (root / "download").mkdir()
    (root / "download" / "manifest.json").write_text(json.dumps(parts))
    source = json.dumps(asdict(_Source("https://x.org/a", '"e"', None, 9)))
    (root / "download" / ".a.json").write_text(source)
    studies.write(root / "study", root / "model", POINT)
    packed = f"packs/{pack.folder.name}"
    expected = Expected(POINT, pack, Protocol(), torch.float32)
    which = identity(POINT, pack, Protocol(), torch.float32)

    def read_checkpoint(folder: Path) -> object:
        found = Checkpoint(folder / "c", which, expected=expected).load()
        if found is None:
            raise UserError("the training starts over")
        state, learner = found
        return state.to_dict(), _sums(state.weights), _sums(learner)

    def read_journal(folder: Path) -> object:
        done = extraction._read_journal(folder, recordings)
        if len(done) < len(recordings):
            raise UserError("some recordings are extracted again")
        return sorted(map(repr, done.items()))

    journal, prepared = extraction.JOURNAL, recordings[0].feature_path
    return [
        *(Example(name, "corpus", name, _read_manifests, "json") for name in MANIFESTS),
        Example("uttr.pt", "corpus", "uttr-0.pt", _read_tensors, is_sealed=True),
        Example("legacy.pt", "corpus", "uttr-1.pt", _read_tensors),
        Example("labels.csv", "corpus", "testlabels.csv", _read_labels, "lines"),
        Example("pack.json", "corpus", f"{packed}/pack.json", _read_pack, "json", True),
        Example("pack index", "corpus", f"{packed}/index.safetensors", _read_pack, "", True),
        Example("pack frames", "corpus", f"{packed}/frames.f16", _read_pack, "", True),
        Example("model card", "model", "model.json", _read_model, "json", True),
        Example("card, sealed", "model", "model.json", _read_model, "json", around=_seal_card),
        Example("model config", "model", "config.json", _read_model, "json", True),
        Example("model weights", "model", "weights.safetensors", _read_model, "", True),
        Example("model source", "model", "source.json", _read_model, "json"),
        Example("checkpoint", "checkpoint", "c", read_checkpoint, "", True),
        Example("its state", "checkpoint", "c", read_checkpoint, "json", False, *STATE),
        Example("its tensors", "checkpoint", "c", read_checkpoint, "", False, *TENSORS),
        Example("journal", "journal", journal, read_journal, "lines", True),
        Example("journal line", "journal", journal, read_journal, "json", True, *LINE),
        Example("journal's tensor", "journal", prepared, read_journal, "", True),
        Example("manifest", "download", "manifest.json", _read_parts, "json"),
        Example("part's source", "download", ".a.json", _read_source, "json"),
        Example("tar.gz", "tar", "Dataset.tar.gz", _unpack, "", True),
        Example("tar", "tar", "Dataset.tar.gz", _unpack, "", False, *TAR),
        Example("zip", "zip", "Dataset.zip", _unpack, "", True),
        *(
            Example(ending, "audio", f"a.{ending}", _listen(f"a.{ending}"), "", ending in SEALED)
            for ending in ENDINGS
        ),
        Example("study file", "study", "s.zip", studies.read, "", True),
        Example("study", "study", "s.zip", studies.read, "json", False, *studies.PARTS),
    ]  # fmt: skip


class Keen(Checkpoint):
    """A checkpoint that is always due."""

    def due(self) -> bool:
        """Tell that it is."""
        return True


def write_corpus(folder: Path) -> None:
    """Write three speakers with ten utterances each, and three to predict."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    lengths = [int(8 + 3 * (number % 4)) for number in range(33)]
    for number, length in enumerate(lengths):
        mels = torch.randn(length, 40, generator=draw)
        torch.save(mels, folder / f"uttr-{number}.pt", _use_new_zipfile_serialization=number != 1)
    listing = [(f"uttr-{number}.pt", length) for number, length in enumerate(lengths)]
    labelled = {name: listing[at * 10 : at * 10 + 10] for at, name in enumerate(SPEAKERS)}
    write_manifests(folder, 40, labelled, listing[30:])
    write_csv(folder / "testlabels.csv", read_corpus(folder), SPEAKERS)


def _write_journal(folder: Path) -> list[Recording]:
    """Prepare three recordings as `extract_all` does, and return them."""
    for name in SPEAKERS:
        (folder / "recordings" / name).mkdir(parents=True)
        voice = synthesize(draw_voice(name), "fuzz").numpy()
        soundfile.write(folder / "recordings" / name / "a.wav", voice, 16_000)
    recordings = find_recordings(folder / "recordings").recordings
    lines = []
    for each in recordings:
        outcome = extraction._extract(folder / "recordings" / each.path, folder / each.feature_path)
        lines.append(extraction._line(each, outcome))
    (folder / extraction.JOURNAL).write_text("".join(lines))
    return recordings


def _write_archives(root: Path) -> None:
    files = sorted(path for path in (root / "corpus").iterdir() if path.is_file())
    (root / "tar").mkdir()
    (root / "zip").mkdir()
    with (
        tarfile.open(root / "tar" / "Dataset.tar.gz", "w:gz", compresslevel=1) as tar,
        zipfile.ZipFile(root / "zip" / "Dataset.zip", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for path in files:
            if path.name != "testlabels.csv":
                tar.add(path, f"Dataset/{path.name}")
                packed.write(path, f"Dataset/{path.name}")


def _read_manifests(folder: Path) -> object:
    corpus = read_corpus(folder)
    return corpus.n_mels, corpus.speakers, corpus.utterances, corpus.test


def _read_tensors(folder: Path) -> object:
    corpus = read_corpus(folder)
    return [read_mels(corpus, utterance).numpy().tobytes() for utterance in corpus.utterances[:2]]


def _read_labels(folder: Path) -> object:
    return read_labels(read_corpus(folder))


def _read_pack(folder: Path) -> object:
    corpus = read_corpus(folder)
    check_pack(corpus, folder / "packs")
    pack = open_pack(corpus, folder / "packs")
    tensors = _sums({name: getattr(pack, name) for name in ("frames", "offsets", "labels")})
    return tensors, pack.speakers, pack.digest, pack.shortest, pack.longest


def _read_model(folder: Path) -> object:
    model = load_model(folder)
    source = {key: value for key, value in model.source.items() if key != "folder"}
    about = (model.config, model.n_mels, model.speakers, model.corpus_digest, source)
    return about, _sums(model.model.state_dict())


def _read_parts(folder: Path) -> object:
    return read_manifest(folder / "manifest.json")


def _read_source(folder: Path) -> object:
    path = folder / ".a.json"
    return parse_record(_Source, read_bounded(path, MAX_SOURCE_BYTES), path, "")


def _listen(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        sound = read_sound(folder / name)
        return sound.rate, sound.format, sound.misnamed, sound.waveform.numpy().tobytes()

    return read


def _unpack(folder: Path) -> object:
    out = folder / "out"
    unpack_parts(find_parts(folder), out)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def _sums(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {
        name: f"{each.dtype} {each.shape} {_sum(each)}"
        for name, each in sorted(tensors.items())
    }  # fmt: skip


def _sum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _gzipped(_whole: bytes, tar: bytes) -> bytes:
    return gzip.compress(tar, 1)


def _seal_card(_whole: bytes, inner: bytes) -> bytes:
    """Seal a changed card anew, where it is one."""
    try:
        card = parse_record(ModelCard, inner, Path("card"), "")
    except UserError:  # it is the reader's to refuse
        return inner
    return json.dumps(asdict(card.sealed())).encode()


def _about_in(whole: bytes) -> bytes:
    return bytes(load(whole[32:])[ABOUT].numpy())


def _put_about(whole: bytes, about: bytes) -> bytes:
    tensors = load(whole[32:])
    tensors[ABOUT] = torch.frombuffer(bytearray(about or b" "), dtype=torch.uint8)
    return _digested(whole, save(tensors))


def _tensors_in(whole: bytes) -> bytes:
    return whole[32:]


def _digested(_whole: bytes, data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data


def _first(whole: bytes) -> bytes:
    return whole.splitlines()[0]


def _put_first(whole: bytes, line: bytes) -> bytes:
    return io.BytesIO(whole).read().replace(_first(whole), line, 1)


# What is got out of a file to be mutated, and what puts it back.
STATE, TENSORS, LINE = (_about_in, _put_about), (_tensors_in, _digested), (_first, _put_first)
TAR = (gzip.decompress, _gzipped)
