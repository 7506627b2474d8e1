"""What `name` does: audio files in, the likeliest speakers of each with their probabilities out."""

import argparse
import csv
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from speaker.common.cli import printable
from speaker.common.errors import UserError

if TYPE_CHECKING:  # they bring torch, which --help does without
    from torch import Tensor

    from speaker.model.saved_model import TrainedModel

LIKELIEST = 5


def name(arguments: argparse.Namespace, models: AbstractContextManager[list[Path]]) -> None:
    """Print the likeliest speakers of each file, by the model in the folder that `models` gives.

    Raises UserError when a file cannot be read; the others are named all the same.
    """
    from speaker.data.features import N_MELS
    from speaker.model.saved_model import load_model
    from speaker.sources.extraction import read_features

    with models as folders:
        trained = load_model(folders[0])
    if trained.n_mels != N_MELS:
        raise UserError(
            f"a model that names recordings must know their {N_MELS} mels, but this one knows "
            f"{trained.n_mels}; choose a model trained on the features that `prepare` makes"
        )
    named, faults = [], []
    for path in arguments.files:
        try:
            named.append((str(path), likeliest(trained, read_features(path))))
        except UserError as error:
            faults.append(str(error))
    _print(named, arguments)
    for fault in faults:
        print(f"left out: {printable(fault)}", file=sys.stderr)
    if faults:
        raise UserError(
            f"every file must be a recording that can be read, but {len(faults)} of "
            f"{len(arguments.files)} are not; fix or leave out those named above"
        )


def likeliest(trained: "TrainedModel", mels: "Tensor") -> list[tuple[str, float]]:
    """Return an utterance's likeliest speakers with their probabilities, the likeliest first.

    mels is float32 (frames, n_mels).
    """
    import torch

    from speaker.prediction.predict import warn_of_long

    warn_of_long([len(mels)])
    with torch.inference_mode():
        probabilities = trained.model(mels[None]).softmax(1)[0]
    best = probabilities.topk(min(LIKELIEST, len(trained.speakers)))
    ids, values = best.indices.tolist(), best.values.tolist()
    return [(trained.speakers[each], value) for each, value in zip(ids, values, strict=True)]


def _print(named: list[tuple[str, list[tuple[str, float]]]], arguments: argparse.Namespace) -> None:
    if arguments.json:
        records = [
            {"file": file, "speakers": [{"speaker": who, "probability": p} for who, p in found]}
            for file, found in named
        ]
        print(json.dumps(records, indent=1))
        return
    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["File", "Rank", "Speaker", "Probability"])
        for file, found in named:
            for rank, (who, p) in enumerate(found, start=1):
                writer.writerow([file, rank, who, f"{p:.6f}"])
        return
    for file, found in named:
        print(printable(file))
        for who, p in found:
            print(f"  {p:.4f}  {printable(who)}")
