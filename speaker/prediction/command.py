"""What `predict` does, as `python -m speaker` offers it for folders and `python -m experiments`
for registered models.
"""

import argparse
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speaker.common.cli import printable
from speaker.common.errors import UserError
from speaker.common.paths import STATE

if TYPE_CHECKING:  # they bring torch, which --help does without
    import torch

    from speaker.common.devices import Compute
    from speaker.data.corpus import Corpus
    from speaker.model.saved_model import TrainedModel


def predict(arguments: argparse.Namespace, models: AbstractContextManager[list[Path]]) -> None:
    """Predict a corpus's test utterances with a model, or with the vote of several,
    and say what was written.

    `models` is entered, to give the models' folders, once all else is known to be usable.
    """
    from speaker.data.corpus import read_corpus
    from speaker.data.labels import read_labels_if_right, write_csv
    from speaker.prediction.predict import predict_probabilities
    from speaker.prediction.submission import write_probabilities, write_sidecar

    _validate_ensemble(arguments)
    table, sidecar = _output_paths(arguments)
    compute = _find_compute(arguments.device)
    corpus = read_corpus(arguments.data)
    labels = read_labels_if_right(corpus)
    if not corpus.test:
        raise UserError(
            f"{corpus.folder / 'testdata.json'} must list utterances to predict, but lists none"
        )
    trained = _load_models(models, corpus)
    note = _note(trained, corpus, compute)
    if arguments.ensemble:
        note["validation"] = _measure_gain(trained, corpus, compute.device)
    probabilities = predict_probabilities(
        trained, corpus, corpus.test, compute.device, arguments.batch_size
    ).mean(0)
    speakers = [corpus.speakers[choice] for choice in probabilities.argmax(1).tolist()]
    if labels:
        accuracy = sum(map(str.__eq__, labels, speakers)) / len(labels)
        note["test_accuracy"] = accuracy
        print(f"Test accuracy {accuracy:.4f}, by the {len(labels):,} labels beside the corpus.")
    table.unlink(missing_ok=True)  # an earlier prediction's: what lies beside the CSV belongs to it
    if arguments.probabilities:
        write_probabilities(table, corpus, probabilities)
    write_sidecar(sidecar, note)
    write_csv(arguments.out, corpus, speakers)
    by = trained[0].config.label() if len(trained) == 1 else f"the vote of {len(trained)} models"
    print(f"Wrote {len(speakers):,} predictions of {by} to {printable(arguments.out)}.")


def _validate_ensemble(arguments: argparse.Namespace) -> None:
    if (arguments.ensemble is None) != (arguments.study is None) or (
        arguments.ensemble and arguments.model
    ):
        raise UserError(
            "--ensemble N needs --study NAME and no --model; see python -m speaker predict --help"
        )


def _find_compute(device: str) -> "Compute":
    """Return how to compute, and make a GPU ready. What could not be used is said."""
    from speaker.common import cuda
    from speaker.common.devices import find_compute

    compute = find_compute(device, "fp32")
    for fallback in compute.fallbacks:
        print(f"warning: {fallback}", file=sys.stderr)
    if compute.device.type == "cuda":
        cuda.use(compute.device)
    return compute


def _load_models(
    models: AbstractContextManager[list[Path]], corpus: "Corpus"
) -> list["TrainedModel"]:
    from speaker.model.saved_model import load_model
    from speaker.prediction.predict import validate_match

    with models as folders:
        trained = [load_model(folder) for folder in folders]
    for each in trained:
        validate_match(each, corpus)
    return trained


def _note(trained: list["TrainedModel"], corpus: "Corpus", compute: "Compute") -> dict[str, object]:
    """Return what made a prediction, as it is kept beside it."""
    import torch

    from speaker.common.provenance import provenance

    return {
        "models": [each.describe() for each in trained],
        "corpus": {"folder": str(corpus.folder), "manifests_sha256": corpus.key},
        "code": provenance(replace(compute, threads=torch.get_num_threads())),
    }


def _measure_gain(
    trained: list["TrainedModel"], corpus: "Corpus", device: "torch.device"
) -> dict[str, object]:
    """Say what the vote gains on the validation part, and return it for the note."""
    from speaker.data.pack import open_pack
    from speaker.data.protocol import Protocol
    from speaker.prediction.predict import validation_gain

    digest = open_pack(corpus, STATE / "packs").digest
    gain = validation_gain(trained, corpus, digest, device, Protocol())
    print(gain.describe())
    return asdict(gain)


def _output_paths(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Return where the probabilities and the note go.

    Raises UserError where something cannot be written.
    """
    from speaker.common.paths import validate_output_path

    validate_output_path(arguments.out, corpus=arguments.data, begins=b"Id,Category")
    table = arguments.out.with_name(f"{arguments.out.name}.parquet")
    sidecar = arguments.out.with_name(f"{arguments.out.name}.json")
    validate_output_path(table, begins=b"PAR1")
    validate_output_path(sidecar, begins=b"{")
    return table, sidecar
