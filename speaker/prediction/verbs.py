"""The verbs `predict` and `name`: `python -m speaker` offers them for models in folders and
`python -m experiments` for those that MLflow holds.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from speaker.common.cli import add_device, add_tracking_uri, positive_int

Models = Callable[[argparse.Namespace], AbstractContextManager[list[Path]]]


def add_verbs(verbs: Any, models: Models) -> None:
    """Add both verbs to subparsers; `models` gives the folders of the models asked for."""
    predict = verbs.add_parser(
        "predict", help="name the speakers of a corpus's test utterances, as a CSV"
    )
    _add_predict_flags(predict)
    predict.set_defaults(run=lambda arguments: run_predict(arguments, models))
    name = verbs.add_parser("name", help="name the likeliest speakers of recordings")
    _add_name_flags(name)
    name.set_defaults(run=lambda arguments: run_name(arguments, models))


def _add_predict_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="corpus whose testdata.json to predict",
    )
    flags.add_argument(
        "--model", metavar="NAME", help="folder, or alias, version or run id in MLflow; champion"
    )
    flags.add_argument(
        "--ensemble", type=positive_int, metavar="N", help="the best N runs of --study vote instead"
    )
    flags.add_argument("--study", metavar="NAME", help="whose best runs vote")
    flags.add_argument(
        "--out", type=Path, default=Path("submission.csv"), metavar="FILE", help="CSV to write"
    )
    flags.add_argument(
        "--probabilities",
        action="store_true",
        help="write class probabilities beside it, as a Parquet table",
    )
    flags.add_argument(
        "--batch-size", type=positive_int, metavar="N", help="most utterances at once"
    )
    add_device(flags)
    add_tracking_uri(flags)


def _add_name_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="recording of one speaker"
    )
    flags.add_argument(
        "--model", metavar="NAME", help="folder, or alias, version or run id in MLflow; champion"
    )
    form = flags.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON list")
    form.add_argument("--csv", action="store_true", help="print File,Rank,Speaker,Probability")
    add_tracking_uri(flags)
    flags.set_defaults(ensemble=None, study=None)


def run_predict(arguments: argparse.Namespace, models: Models) -> None:
    """Predict the test utterances of a corpus."""
    from speaker.prediction.command import predict

    predict(arguments, models(arguments))


def run_name(arguments: argparse.Namespace, models: Models) -> None:
    """Name the likeliest speakers of recordings."""
    from speaker.prediction.name import name

    name(arguments, models(arguments))


def is_local(arguments: argparse.Namespace) -> bool:
    """Tell whether a folder is asked for, and not a model that MLflow holds."""
    return not arguments.ensemble and Path(arguments.model or "champion").is_dir()
