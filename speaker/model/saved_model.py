"""Models on disk: weights as safetensors beside the JSON that is needed to load them.

Data, never code.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from speaker.common.errors import UserError, first_line
from speaker.common.files import parse_json, read_bounded, sha256_file, write_atomically
from speaker.common.records import Sealed, parse_record
from speaker.config import TrialConfig
from speaker.model.classifier import SpeakerClassifier

T = TypeVar("T")

FORMAT = 2
MAX_BYTES, MAX_TEXT_BYTES = 1 << 30, 64 << 20  # of weights; of the JSON beside them
WEIGHTS, CONFIG, CARD = "weights.safetensors", "config.json", "model.json"
SOURCE = "source.json"  # beside them in a fetched model: the run and version it came from


@dataclass(frozen=True)
class ModelCard(Sealed):
    """What is written beside a model's weights."""

    format: int
    n_mels: int
    speakers: tuple[str, ...]
    corpus: str  # digest of what it was trained on
    config: str  # fingerprint
    weights_sha256: str  # hex


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was saved: its point, what it hears and whom it knows."""

    model: SpeakerClassifier
    config: TrialConfig
    n_mels: int
    speakers: tuple[str, ...]  # by id
    corpus_digest: str
    weights_sha256: str
    source: dict[str, Any]  # where it came from: the folder, or the run and version

    def describe(self) -> dict[str, Any]:
        """Return what tells this model from all others."""
        about = {
            "point": self.config.label(),
            "weights_sha256": self.weights_sha256,
            "trained_on": self.corpus_digest,
        }
        return {**self.source, **about}


def save_model(
    folder: Path,
    weights: dict[str, Tensor],
    config: TrialConfig,
    n_mels: int,
    speakers: tuple[str, ...],
    digest: str,
) -> str:
    """Write a model into `folder` and return the sha256 of its weights' file, in hex.

    `digest` is that of the corpus it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / CONFIG, config.to_json().encode())
    sha256 = sha256_file(folder / WEIGHTS)
    card = ModelCard(FORMAT, n_mels, speakers, digest, config.fingerprint(), sha256).sealed()
    write_atomically(folder / CARD, json.dumps(asdict(card), indent=1).encode())
    return sha256


def load_model(folder: Path) -> TrainedModel:
    """Load what `save_model` wrote, in evaluation mode on the CPU. Nothing
    in the folder is run, or trusted.

    Raises UserError when a file is missing, broken, or not the one the model was saved with.
    """
    card = parse_record(ModelCard, _read(folder / CARD), folder / CARD, "fetch the model again")
    if card.format != FORMAT or card.n_mels < 1:
        raise UserError(
            f"{folder / CARD} must be a model's of format {FORMAT}, but is not; save the model "
            "again"
        )
    if not card.is_whole():
        raise UserError(
            f"{folder / CARD} must be as it was written, but was changed; fetch the model again"
        )
    if not card.speakers or "" in card.speakers or len({*card.speakers}) < len(card.speakers):
        raise UserError(
            f"{folder / CARD} must name each speaker once, but does not; fetch the model again"
        )
    config = _read_config(folder, card)
    data = read_bounded(folder / WEIGHTS, MAX_BYTES)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != card.weights_sha256:
        raise UserError(
            f"{folder / WEIGHTS}: its sha256 must be the one in {CARD}, but is not; fetch the "
            "model again"
        )
    source = (
        _read_object(folder / SOURCE) if (folder / SOURCE).exists() else {"folder": str(folder)}
    )
    model = _build(data, config, card.n_mels, len(card.speakers), folder / WEIGHTS)
    return TrainedModel(
        model.eval(), config, card.n_mels, card.speakers, card.corpus, sha256, source
    )


def _read_config(folder: Path, card: ModelCard) -> TrialConfig:
    """Return the point beside the weights, which must be the one that the card was written with."""
    fields = _read_object(folder / CONFIG)
    try:
        config = TrialConfig.from_dict(fields)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}; fetch the model again") from error
    if config.fingerprint() != card.config:
        rule = f"{folder / CONFIG} must be the config that {CARD} was written with"
        raise UserError(f"{rule}, but is another; fetch the model again")
    return config


def _build(
    data: bytes, config: TrialConfig, n_mels: int, n_speakers: int, path: Path
) -> SpeakerClassifier:
    """Return the network with these weights and buffers.

    It is laid out without memory first, so that a config cannot ask for more than the file holds.
    """
    try:
        state = load(data)
        if config.num_layers > len(state):
            raise UserError(
                f"{path}: must hold the weights of {config.label()}, but holds too few; fetch it "
                "again"
            )
        with torch.device("meta"):
            model = SpeakerClassifier(config, n_mels, n_speakers)
        for name, expected in model.state_dict().items():
            if name in state and state[name].dtype != expected.dtype:
                raise UserError(
                    f"{path}: {name} must be {expected.dtype}, but is {state[name].dtype}; save "
                    "the model again"
                )
        model.load_state_dict(state, assign=True)
        # One that is not saved, but computed when built.
        if any(buffer.is_meta for buffer in model.buffers()):
            model = SpeakerClassifier(config, n_mels, n_speakers)
            model.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError, OverflowError, SafetensorError) as error:
        raise UserError(
            f"{path}: the model cannot be read ({first_line(error)}); fetch it again"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise UserError(f"{path}: weights must be finite, but one is not; fetch it again")
    return model


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_TEXT_BYTES)
    except UserError as error:
        raise UserError(
            f"{error}; a model is a folder with {WEIGHTS}, {CONFIG} and {CARD}"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    value = parse_json(_read(path), path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path} must hold an object, but holds {type(value).__name__}; fetch the model again"
        )
    return value
