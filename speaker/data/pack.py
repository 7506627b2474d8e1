"""The pack: a corpus's labelled utterances as one memory-mapped array of frames,
built once and used by every trial.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from speaker.common.errors import UserError
from speaker.common.files import create_once, read_bounded, sha256_file
from speaker.common.records import Sealed, parse_record
from speaker.data.corpus import Corpus, read_mels

FORMAT = 1
ABOUT, INDEX, FRAMES = "pack.json", "index.safetensors", "frames.f16"
MAX_ABOUT_BYTES, MAX_INDEX_BYTES = (
    64 << 20,
    1 << 30,
)  # of a million speakers, 60 million utterances
FRAMES_AT_ONCE = 1 << 20  # that are sent to a device
PADDING = -20.0  # the homework's padding value; masked wherever the model could see it


@dataclass(frozen=True)
class Pack:
    """All labelled utterances, end to end. Row i is utterance i of the corpus.

    Sent to another process, it is not copied: that process maps the same file, or shares the memory
    of the GPU.
    """

    folder: Path  # where it lies on disk
    frames: Tensor  # (total frames, n_mels), float16; on a GPU that computes in bfloat16, that
    offsets: Tensor  # (n,), int64: where utterance i starts
    lengths: Tensor  # (n,), int64: its number of frames
    labels: Tensor  # (n,), int64: its speaker's id
    speakers: tuple[str, ...]
    digest: str  # sha256 of speakers, lengths, labels and float32 frames: the corpus's identity
    shortest: int
    longest: int

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.frames.device.type != "cuda":  # PyTorch would copy what it shares
            return _open_on, (self.folder, self.frames.device, self.frames.dtype)
        return Pack, tuple(getattr(self, field.name) for field in fields(self))

    @property
    def n_mels(self) -> int:
        """Mel bands of a frame."""
        return self.frames.shape[1]

    def to(self, device: torch.device, precision: torch.dtype = torch.float16) -> "Pack":
        """Return this pack on a device, for products in a precision;
        on the CPU the frames stay memory-mapped.

        Products in bfloat16 round the frames to it in any case, and a GPU does that once instead of
        at every step.
        """
        index = {name: getattr(self, name).to(device) for name in ("offsets", "lengths", "labels")}
        if device.type == "cpu":
            return replace(self, **index)
        dtype = torch.bfloat16 if precision == torch.bfloat16 else torch.float16
        frames = torch.empty(self.frames.shape, dtype=dtype, device=device)
        for there, here in zip(
            frames.split(FRAMES_AT_ONCE), self.frames.split(FRAMES_AT_ONCE), strict=True
        ):
            there.copy_(here.to(dtype))
        return replace(self, frames=frames, **index)

    def gather(
        self, rows: Tensor, starts: Tensor | int, width: int, is_padded: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return frames starts[i] to starts[i] + width of the utterances `rows`.

        Returns (mels (B, width, n_mels), lengths int64 (B,)): frames past an utterance's end hold
        PADDING, and lengths counts the others. Unless the batch `is_padded`, the caller knows that
        there are none, and lengths is None. `rows` and `starts` are int64 (B,) on the pack's
        device.
        """
        steps = torch.arange(width, device=rows.device)
        first = (self.offsets.index_select(0, rows) + starts)[:, None]
        if not is_padded:
            return self._frames_at(first + steps), None
        lengths = (self.lengths.index_select(0, rows) - starts).clamp_(max=width)
        mels = self._frames_at(first + torch.minimum(steps, lengths[:, None] - 1))
        return mels.masked_fill_((steps >= lengths[:, None])[:, :, None], PADDING), lengths

    def crop_starts(self, rows: Tensor, uniform: Tensor, width: int) -> Tensor:
        """Turn numbers from [0, 1) into the first frames of crops:
        each legal start is equally likely.
        """
        slack = (self.lengths.index_select(0, rows) - width).clamp_(min=0)
        return torch.minimum((uniform * (slack + 1)).long(), slack)

    def _frames_at(self, index: Tensor) -> Tensor:
        """Return frames by their numbers, (B, T), as (B, T, n_mels)."""
        return self.frames.index_select(0, index.flatten()).view(*index.shape, -1)


def length_buckets(
    lengths: Tensor, max_frames: int, most: int | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Yield (positions in `lengths`, width) batches of utterances of like length, shortest first.

    `lengths` is int64 (n,) on the CPU. Width, the longest of a batch, times its size is at most
    `max_frames`; a longer utterance is a batch of its own. A batch has at most `most` utterances.
    """
    order = lengths.argsort(stable=True)
    widths: list[int] = lengths[order].tolist()
    start = 0
    for end in range(1, len(widths) + 1):
        if (
            end == len(widths)
            or widths[end] * (end + 1 - start) > max_frames
            or end - start == most
        ):
            yield order[start:end], widths[end - 1]
            start = end


def open_pack(corpus: Corpus, store: Path) -> Pack:
    """Open the pack of a corpus in the folder `store`, building it first if it is not there.

    A pack belongs to the bytes of the corpus's manifests: after feature files were changed under
    the same manifests, delete it. Raises UserError for a corpus that cannot be packed.
    """
    folder = _place(corpus, store)
    create_once(folder, lambda partial: _build(corpus, partial))
    return _open(folder)


def find_pack(store: Path, digest: str) -> Pack | None:
    """Return the pack with this digest in the folder `store`, or None: its corpus may be gone."""
    for path in sorted(store.glob(f"*/{ABOUT}")):
        with contextlib.suppress(UserError, OSError):
            if _read_about(path.parent).digest == digest:
                return _open(path.parent)
    return None


def _build(corpus: Corpus, folder: Path) -> None:
    """Stream the corpus into `folder`, one utterance in memory at a time."""
    if not corpus.utterances:
        raise UserError(
            f"{corpus.folder / 'metadata.json'} lists no utterance; a corpus needs some to train on"
        )
    folder.mkdir()
    lengths = torch.tensor([utterance.frames for utterance in corpus.utterances])
    labels = torch.tensor([utterance.speaker for utterance in corpus.utterances])
    digest = hashlib.sha256(json.dumps([corpus.n_mels, corpus.speakers]).encode())
    digest.update(lengths.numpy().tobytes() + labels.numpy().tobytes())
    frames = hashlib.sha256()
    total = int(lengths.sum())
    heard: dict[int, int | None] = {}
    repeated = 0
    with (
        (folder / FRAMES).open("wb") as stream,
        tqdm(
            total=total, desc=f"packing {corpus.name}", unit="frame", unit_scale=True, disable=None
        ) as bar,
    ):
        for utterance in corpus.utterances:
            mels = read_mels(corpus, utterance)
            digest.update(mels.numpy().data)
            packed = mels.to(torch.float16).numpy().tobytes()
            stream.write(packed)
            frames.update(packed)
            repeated += heard.setdefault(hash(packed), utterance.speaker) != utterance.speaker
            bar.update(utterance.frames)
    if repeated:
        print(
            f"warning: {repeated:,} utterances stand under two speakers; python -m speaker check "
            "lists them"
        )
    index = save({"lengths": lengths, "labels": labels})
    (folder / INDEX).write_bytes(index)
    about = _About(FORMAT, corpus.n_mels, corpus.speakers, digest.hexdigest(), frames.hexdigest())
    (folder / ABOUT).write_text(json.dumps(asdict(about.sealed(index)), indent=1))


@dataclass(frozen=True)
class _About(Sealed):
    """What ABOUT holds."""

    format: int
    n_mels: int
    speakers: tuple[str, ...]
    digest: str
    frames_sha256: str = ""  # of FRAMES; nothing in packs of older programs


def _open(folder: Path) -> Pack:
    path = folder / FRAMES
    try:
        about = _read_about(folder)
        data = read_bounded(folder / INDEX, MAX_INDEX_BYTES)
        index = load(data)
        lengths, labels, n_mels = index["lengths"], index["labels"], about.n_mels
        ends = lengths.cumsum(0)
        total = int(ends[-1])
        whole = about.format == FORMAT and path.stat().st_size == 2 * total * n_mels
        whole = whole and about.is_whole(data)
    except (OSError, ValueError, KeyError, UserError, SafetensorError):
        whole = False
    if not whole:
        raise UserError(
            f"{folder} must be a whole pack of format {FORMAT}, but is not; delete it and run again"
        )
    frames = torch.from_file(
        str(path), shared=False, size=total * n_mels, dtype=torch.float16
    ).view(total, n_mels)
    return Pack(
        folder=folder,
        frames=frames,
        offsets=ends - lengths,
        lengths=lengths,
        labels=labels,
        speakers=about.speakers,
        digest=about.digest,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
    )


def check_pack(corpus: Corpus, store: Path) -> Path:
    """Read all of a corpus's pack in the folder `store` again, and return where it lies.

    Opening a pack does not read its frames. Raises UserError where there is none, or it changed.
    """
    folder = _place(corpus, store)
    if not folder.is_dir():
        raise UserError(f"there is no pack of {corpus.folder} in {store}; a search makes it")
    _open(folder)
    expected = _read_about(folder).frames_sha256
    if expected != sha256_file(folder / FRAMES):
        reason = "have changed" if expected else "have no checksum, as of an older program"
        raise UserError(
            f"the frames of {folder} must be as they were packed, but {reason}; delete the folder, "
            "and a search makes it again"
        )
    return folder


def check_folder(folder: Path) -> str:
    """Read all of a pack again, and return what is wrong with it; nothing of one that is whole, or
    of an older program's, whose frames have no checksum.
    """
    try:
        _open(folder)
    except UserError as error:
        return str(error)
    expected = _read_about(folder).frames_sha256
    is_whole = not expected or expected == sha256_file(folder / FRAMES)
    return "" if is_whole else f"the frames of {folder} have changed since they were packed"


def digest_of(folder: Path) -> str:
    """Return the digest of a pack that can be opened."""
    return _read_about(folder).digest


def pack_name(corpus: Corpus) -> str:
    """Return what a corpus's pack is called."""
    return f"{corpus.name}-{corpus.key[:12]}"


def _place(corpus: Corpus, store: Path) -> Path:
    return store / pack_name(corpus)


def _read_about(folder: Path) -> _About:
    return parse_record(_About, read_bounded(folder / ABOUT, MAX_ABOUT_BYTES), folder / ABOUT, "")


def _open_on(folder: Path, device: torch.device, precision: torch.dtype) -> Pack:
    return _open(folder).to(device, precision)
