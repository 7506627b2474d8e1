"""`python -m speaker VERB`: everything about data and prediction."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from speaker.cli import BAD_INPUT, Parser, run_cli
from speaker.errors import UserError


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(prog="python -m speaker", description="Speaker classification: data and prediction.")
    verbs = flags.add_subparsers(dest="verb", required=True, metavar="VERB")
    predict = verbs.add_parser("predict", help="name the speakers of a corpus's test utterances, as a CSV")
    predict.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="corpus whose testdata.json to predict"
    )
    predict.add_argument("--model", default="champion", help="alias, version or run id in MLflow, or a local folder")
    predict.add_argument("--out", type=Path, default=Path("submission.csv"), metavar="FILE", help="CSV to write")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    predict.add_argument(
        "--tracking-uri", metavar="URL", help="MLflow's store; else $MLFLOW_TRACKING_URI, else mlruns/mlflow.db"
    )
    predict.set_defaults(run=run_predict)
    return flags


def run_predict(arguments: argparse.Namespace) -> None:
    """Predict the test utterances of a corpus with a model."""
    from speaker.checkpoint import load_model
    from speaker.corpus import read_corpus
    from speaker.devices import find_device
    from speaker.predict import check_match, check_out, predict_logits, write_csv

    check_out(arguments.out)
    device = find_device(arguments.device)
    corpus = read_corpus(arguments.data)
    with model_folder(arguments.model, arguments.tracking_uri) as folder:
        trained = load_model(folder)
    check_match(trained, corpus)
    choices = predict_logits(trained, corpus, device).argmax(1).tolist()
    write_csv(arguments.out, corpus, [trained.speakers[choice] for choice in choices])
    print(f"Wrote {len(choices)} predictions of {trained.config.label()} to {arguments.out}.")


@contextlib.contextmanager
def model_folder(model: str, tracking_uri: str | None) -> Iterator[Path]:
    """Give the folder of a model: a local one, or what MLflow holds under an alias, a version or a run id.

    MLflow is asked by a process of its own, `python -m experiments fetch`: this package must work without it.
    """
    if Path(model).is_dir():
        yield Path(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments", "fetch", "--model", model, "--out", folder]
        if tracking_uri:
            command += ["--tracking-uri", tracking_uri]
        fetched = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if fetched.returncode == BAD_INPUT:
            raise UserError(fetched.stderr.strip().removeprefix("error: "))
        if fetched.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {fetched.returncode}: {fetched.stderr}")
        yield Path(folder)


def main() -> None:
    """Run a verb."""
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_cli(main)
