"""Checkpoints: a training's whole state on disk,
so that it resumes after any kill and reaches the same end, bit for bit.
"""

import dataclasses
import hashlib
import os
import shutil
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from speaker.common.errors import UserError, describe_differences, first_line
from speaker.common.files import canonical_json, open_regular, read_bounded, write_atomically
from speaker.common.records import parse_record
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.training.metrics import OBJECTIVE, Metrics, hex_of
from speaker.training.saved_state import Expected

MIN_INTERVAL_S = 1.0  # between two checkpoints
MAX_TIME_FRACTION = 0.02  # of a training's time that writing them may take
PACKAGE = Path(__file__).parents[1]
# Files and folders.
DECIDING = ("config.py", "common/devices.py", "common/seeding.py", "data", "model", "training")
MAX_BYTES = 16 << 30  # where it is not known what the training can have
OVER = "delete it to start over"
ABOUT = "about"  # the tensor that holds what is not a tensor, as JSON


class OtherTrainingError(UserError):
    """A checkpoint is of another training; the message names each difference."""


@dataclass
class Progress:
    """How far a training has come, apart from tensors."""

    step: int = 0  # steps done
    last: int = 0  # step of the last evaluation
    seconds: float = 0.0
    best_step: int = 0
    hits: str = ""  # at best_step: see `hex_of`
    told: list[int] = field(default_factory=list, repr=False)  # at best_step: labels
    is_blown_up: bool = False  # whether the loss was, at the last look: see collapse.py
    rows: list[tuple[int, Metrics]] = field(default_factory=list)  # of all evaluations


@dataclass
class TrainingState(Progress):
    """How far a training has come, apart from its learner."""

    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # at best_step, on the CPU

    @property
    def best(self) -> Metrics:
        """The metrics at best_step."""
        return dict(self.rows).get(self.best_step, {})

    def add(
        self,
        metrics: Metrics,
        hits: Tensor,
        told: Tensor,
        copy_weights: Callable[[], dict[str, Tensor]],
    ) -> None:
        """Add an evaluation after the last step, with its hits, bool (n,), and the labels that it
        gave, (n,).

        Those and the weights of the best, the first of equals, are kept.
        """
        if not self.rows or metrics[OBJECTIVE] > self.best[OBJECTIVE]:
            self.best_step, self.weights = self.step, copy_weights()
            self.hits, self.told = hex_of(hits), told.tolist()
        self.rows.append((self.step, metrics))
        self.last = self.step

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but the weights."""
        names = (field.name for field in dataclasses.fields(Progress))
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _About:
    """What ABOUT holds."""

    identity: dict[str, str]
    state: Progress


class Copies(typing.Protocol):
    """Copies of a checkpoint where other machines can read them."""

    seconds: float  # that the last one took to be sent

    def is_sending(self) -> bool:
        """Tell whether a copy is on its way."""

    def send(self, path: Path, step: int) -> None:
        """Begin to send a checkpoint of a training that has come to a step."""

    def flush(self, path: Path, step: int) -> None:
        """Send a checkpoint now, and wait for it, but not for long."""

    def fetch(self, path: Path, step: int) -> None:
        """Bring the last copy to `path`, if it is of a later step than this."""

    def remove(self) -> None:
        """Remove all copies."""


class Checkpoint:
    """One training's checkpoint file. With no path nothing is kept.

    Where it is `expected` what the training can have, anything else is taken for damage. With
    `copies` the training can be resumed on another machine.
    """

    def __init__(
        self,
        path: Path | None = None,
        identity: dict[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        expected: Expected | None = None,
        say: Callable[[str], None] = tqdm.write,
        copies: Copies | None = None,
    ) -> None:
        self._path, self._identity, self._clock = path, identity or {}, clock
        self._expected, self._say, self._copies = expected, say, copies
        self._failed = False  # whether the last save did
        self._is_fetched = False  # whether a later copy was looked for
        self._saved_at = clock()
        self._due_at = self._saved_at + MIN_INTERVAL_S

    def due(self) -> bool:
        """Tell whether it is time to save: so seldom that writing takes MAX_TIME_FRACTION
        of the time at most, and sending copies as well.
        """
        if self._path is None or (self._copies and self._copies.is_sending()):
            return False
        sending = self._copies.seconds / MAX_TIME_FRACTION if self._copies else 0.0
        return self._clock() >= max(self._due_at, self._saved_at + sending)

    def save(self, state: TrainingState, learner: dict[str, Tensor]) -> None:
        """Write the state in place of the last one, whole or not at all.

        A disk that is full does not stop a training: the last one stays, and that is said.
        """
        if self._path is None:
            return
        began = self._clock()
        try:
            self._write(self._path, state, learner)
            self._failed = False
            if self._copies:
                self._copies.send(self._path, state.step)
        except OSError as error:
            if not self._failed:
                self._say(f"training goes on, though its checkpoint cannot be written: {error}")
            self._failed = True
        now = self._saved_at = self._clock()
        self._due_at = now + max(MIN_INTERVAL_S, (now - began) / MAX_TIME_FRACTION)

    def save_at_last(self, state: TrainingState, learner: dict[str, Tensor]) -> None:
        """Write the state because the training is interrupted, and see that a copy is sent."""
        self.save(state, learner)
        if self._path and self._copies and not self._failed:
            self._copies.flush(self._path, state.step)

    def _write(self, path: Path, state: TrainingState, learner: dict[str, Tensor]) -> None:
        about = canonical_json({"identity": self._identity, "state": state.to_dict()}).encode()
        data = save(
            {
                ABOUT: torch.frombuffer(bytearray(about), dtype=torch.uint8),
                **{f"learner/{name}": tensor for name, tensor in learner.items()},
                **{f"best/{name}": tensor for name, tensor in state.weights.items()},
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, hashlib.sha256(data).digest() + data)

    def load(self) -> tuple[TrainingState, dict[str, Tensor]] | None:
        """Return what was saved last, or None where nothing was.

        Raises UserError for a damaged file, and OtherTrainingError for one of another training.
        """
        if self._path is None:
            return None
        if self._copies and not self._is_fetched:
            self._copies.fetch(self._path, self._step_here())
            self._is_fetched = True
        return self._load(self._path)

    def _step_here(self) -> int:
        """Return the step of the file on this machine; 0 where none can be used."""
        try:
            found = self._load(self._path) if self._path else None
        except UserError:
            return 0
        return found[0].step if found else 0

    def _load(self, path: Path) -> tuple[TrainingState, dict[str, Tensor]] | None:
        if not os.path.lexists(path):
            return None
        try:
            about, tensors = _read(path, self._expected)
            if changes := describe_differences(about.identity, self._identity):
                raise OtherTrainingError(
                    f"{path} must be of this training, but is of another: {changes}; go on "
                    "with what it began with, or delete it to start over"
                )
            state = TrainingState(**vars(about.state), weights=_under("best/", tensors))
            learner = _under("learner/", tensors)
            if fault := self._expected.fault(state, learner) if self._expected else "":
                raise _DamageError(fault)
        except (SafetensorError, KeyError, ValueError, _DamageError) as error:
            raise UserError(
                f"{path} must be a whole checkpoint, but is damaged ({first_line(error)}); {OVER}"
            ) from error
        return state, learner

    def remove(self) -> None:
        """Remove the file of a training that has ended, what kills left of it, and its copies."""
        if self._path is None:
            return
        if self._copies:
            self._copies.remove()
        self._path.unlink(missing_ok=True)
        for left in self._path.parent.glob(f".{self._path.name}.*.partial"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint is as it was written; one that is gone by now was none.

    What is damaged is not taken into memory, however large it is.
    """
    try:
        with open_regular(path) as stream:
            digest = stream.read(32)
            if hashlib.file_digest(stream, "sha256").digest() != digest:
                return False
        _read(path, None)
    except (OSError, SafetensorError, UserError, KeyError, ValueError, _DamageError):
        return not path.exists()
    return True


def identity(
    config: TrialConfig, pack: Pack, protocol: Protocol, precision: torch.dtype
) -> dict[str, str]:
    """Return what a training must have in common with its checkpoint, by name, in words."""
    return {
        **{f"config.{name}": str(value) for name, value in config.identity().items()},
        **{f"protocol.{name}": str(value) for name, value in vars(protocol).items()},
        "corpus": pack.digest,
        "precision": str(precision).removeprefix("torch."),
        "torch": torch.__version__,
        "code": _code(),
    }


def _code() -> str:
    """Return the identity of the code that decides what a training learns:
    a change of it changes the result.
    """
    digest = hashlib.sha256()
    for path in sorted(deciding_files()):
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def deciding_files() -> list[Path]:
    """Return the files of this program that decide what a training learns."""
    found = []
    for name in DECIDING:
        path = PACKAGE / name
        found += [path] if path.is_file() else list(path.rglob("*.py"))
    return found


class _DamageError(Exception):
    """Why a checkpoint is not as it was written."""


def _read(path: Path, expected: Expected | None) -> tuple[_About, dict[str, Tensor]]:
    """Return what a checkpoint holds: its JSON, and its tensors by name.

    Raises an error of several types for a damaged one. No more is read than there can be.
    """
    data = read_bounded(path, expected.max_bytes() if expected else MAX_BYTES, OVER)
    digest, data = data[:32], data[32:]
    if hashlib.sha256(data).digest() != digest:
        raise _DamageError("its sha256 is another")
    tensors = load(data)
    text = tensors[ABOUT]
    if text.dtype != torch.uint8:
        raise _DamageError(f"{ABOUT} is no text")
    try:
        return parse_record(_About, bytes(text.numpy()), Path(ABOUT), ""), tensors
    except UserError as error:
        raise _DamageError(str(error)) from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
