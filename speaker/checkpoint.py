"""Models on disk: weights as safetensors beside the JSON that is needed to load them. Data, never code."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from speaker.config import TrialConfig
from speaker.errors import UserError
from speaker.files import sha256_file, write_atomically
from speaker.model import SpeakerClassifier

FORMAT = 1
WEIGHTS, CONFIG, CARD = "weights.safetensors", "config.json", "model.json"
SOURCE = "source.json"  # beside them in a fetched model: the run and version it came from


@dataclass(frozen=True)
class TrainedModel:
    """A model as it was saved: its point, what it hears and whom it knows."""

    model: SpeakerClassifier
    config: TrialConfig
    n_mels: int
    speakers: tuple[str, ...]  # by id
    corpus_digest: str
    weights_sha256: str
    source: dict[str, str]  # where it came from: the folder, or the run and version

    def describe(self) -> dict[str, str]:
        """Return what tells this model from all others."""
        about = {"point": self.config.label(), "weights_sha256": self.weights_sha256, "trained_on": self.corpus_digest}
        return {**self.source, **about}


def save_model(
    folder: Path, weights: dict[str, Tensor], config: TrialConfig, n_mels: int, speakers: tuple[str, ...], digest: str
) -> str:
    """Write a model into `folder` and return the sha256 of its weights' file, in hex.

    `digest` is that of the corpus it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / CONFIG, config.to_json().encode())
    sha256 = sha256_file(folder / WEIGHTS)
    card = {"format": FORMAT, "n_mels": n_mels, "speakers": speakers, "corpus": digest, "weights_sha256": sha256}
    write_atomically(folder / CARD, json.dumps(card, indent=1).encode())
    return sha256


def load_model(folder: Path) -> TrainedModel:
    """Load what `save_model` wrote, in evaluation mode on the CPU.

    Raises UserError when a file is missing, broken, or not the one the model was saved with.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        config = TrialConfig.from_dict(json.loads((folder / CONFIG).read_text()))
        n_mels, speakers = int(card["n_mels"]), tuple(map(str, card["speakers"]))
        if card["format"] != FORMAT:
            raise UserError(
                f"{folder / CARD}: format must be {FORMAT}, but is {card['format']!r}; save the model again"
            )
        if sha256_file(folder / WEIGHTS) != card["weights_sha256"]:
            raise UserError(
                f"{folder / WEIGHTS}: its sha256 must be the one in {CARD}, but is not; fetch the model again"
            )
        source = json.loads((folder / SOURCE).read_text()) if (folder / SOURCE).exists() else {"folder": str(folder)}
        model = SpeakerClassifier(config, n_mels, len(speakers))
        model.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(
            f"a model is a folder with {WEIGHTS}, {CONFIG} and {CARD}, but {error.filename} is missing"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder}: the model cannot be read ({reason}); fetch it again") from error
    return TrainedModel(
        model.eval(), config, n_mels, speakers, str(card["corpus"]), str(card["weights_sha256"]), dict(source)
    )
