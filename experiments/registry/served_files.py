"""The files of a registered model: the exported program that plain MLflow serves, the file that
runs it, and the weights as plain data.
"""

import hashlib
import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

from speaker.common.files import sha256_file
from speaker.model.saved_model import CARD, CONFIG, WEIGHTS, TrainedModel

PROGRAM = "program.pt2"
DATA = "artifacts"  # the folder of what MLflow calls so: PROGRAM, WEIGHTS, CONFIG and CARD
README = "README.md"  # the model card for people


def write_served(trained: TrainedModel, fetched: Path, folder: Path, card: str) -> None:
    """Write the pyfunc model of what was `fetched` from a run into a new `folder`, with `card`, its
    description, beside it.
    """
    export_program(trained, fetched / PROGRAM)
    artifacts = {"program": PROGRAM, "card": CARD, "weights": WEIGHTS, "config": CONFIG}
    # MLflow advises type hints, which it would take for a schema.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={key: str(fetched / file) for key, file in artifacts.items()},
            signature=_signature(trained),
            input_example={"mels": [[[0.0] * trained.n_mels] * frames for frames in (3, 2)]},
            pip_requirements=[
                f"{name}=={version(name).partition('+')[0]}"
                for name in ("mlflow", "numpy", "torch")
            ],
        )
    (folder / README).write_text(card)


def _signature(trained: TrainedModel) -> ModelSignature:
    """Return what the pyfunc model takes and gives.

    Utterances differ in length: a tensor would want them padded, and MLflow checks arrays in
    columns number by number, which takes seconds. So served_model.py checks them.
    """
    float32, text = np.dtype(np.float32), np.dtype(np.str_)
    inputs = [ColSpec(AnyType(), "mels"), ColSpec(AnyType(), "lengths", required=False)]
    outputs = [
        TensorSpec(text, (-1,), "speaker"),
        TensorSpec(float32, (-1,), "probability"),
        TensorSpec(float32, (-1, len(trained.speakers)), "probabilities"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def export_program(trained: TrainedModel, path: Path) -> None:
    """Write a model as a torch.export program of (mels, lengths), both sizes dynamic from 1 up."""
    batch, frames = torch.export.Dim("batch", min=1), torch.export.Dim("frames", min=1)
    example = (torch.zeros(2, 3, trained.n_mels), torch.tensor([3, 2]))
    shapes = {"mels": {0: batch, 1: frames}, "lengths": {0: batch}}
    torch.export.save(torch.export.export(trained.model, example, dynamic_shapes=shapes), path)


def digest_of(folder: Path) -> str:
    """Return the sha256, in hex, of the names and bytes of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = "".join(f"{sha256_file(path)}  {path.relative_to(folder)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()
