"""`python -m speaker VERB`: everything about data and prediction."""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from speaker.common.cli import BAD_INPUT, Parser, natural, positive_float, positive_int, printable, run_cli, share
from speaker.common.errors import UserError
from speaker.common.paths import STATE


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(prog="python -m speaker", description="Speaker classification: data and prediction.")
    verbs = flags.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_download(verbs.add_parser("download", help="fetch the homework's corpus, or unpack its parts"))
    _add_prepare(verbs.add_parser("prepare", help="make a corpus from a folder of audio"))
    _add_check(verbs.add_parser("check", help="say all that is wrong with a corpus, and what it looks like"))
    _add_predict(verbs.add_parser("predict", help="name the speakers of a corpus's test utterances, as a CSV"))
    return flags


def _add_download(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--out", type=Path, default=Path("Dataset"), metavar="FOLDER", help="corpus to make")
    source = flags.add_mutually_exclusive_group()
    source.add_argument("--manifest", type=Path, metavar="FILE", help="JSON with the URLs of the archive's parts")
    source.add_argument("--url", action="append", metavar="URL", help="of one part; repeat it for each, in order")
    source.add_argument(
        "--parts",
        type=Path,
        metavar="FOLDER",
        help="with the parts, or a .tar.gz or .zip, fetched by other means",
    )
    flags.add_argument(
        "--timeout", type=positive_float, default=30.0, metavar="SECONDS", help="after which a server has stalled"
    )
    flags.set_defaults(run=run_download)


def _add_prepare(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--audio", type=Path, required=True, metavar="FOLDER", help="with a folder of recordings for each speaker"
    )
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="corpus to make")
    flags.add_argument("--speakers", type=positive_int, metavar="N", help="how many to sample; all if not given")
    flags.add_argument(
        "--test-share", type=share, default=0.0, metavar="X", help="of each speaker's utterances, to be held out"
    )
    flags.add_argument("--seed", type=natural, default=0, help="decides what is sampled and held out")
    flags.add_argument("--workers", type=positive_int, default=os.cpu_count(), metavar="N", help="processes")
    flags.add_argument(
        "--level",
        type=positive_int,
        metavar="N",
        help="the speakers' folders lie N deep in --audio; if not given, 1, but checked",
    )
    flags.add_argument("--skip-bad", action="store_true", help="leave out recordings that cannot be used")
    flags.set_defaults(run=run_prepare)


def _add_check(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with metadata.json")
    flags.add_argument("--figure", type=Path, default=Path("corpus.png"), metavar="FILE", help="picture to draw")
    flags.set_defaults(run=run_check)


def _add_predict(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="corpus whose testdata.json to predict"
    )
    flags.add_argument(
        "--model", metavar="NAME", help="alias, version or run id in MLflow, or a local folder; champion"
    )
    flags.add_argument("--ensemble", type=positive_int, metavar="N", help="the best N runs of --study vote instead")
    flags.add_argument("--study", metavar="NAME", help="whose best runs vote")
    flags.add_argument("--out", type=Path, default=Path("submission.csv"), metavar="FILE", help="CSV to write")
    flags.add_argument(
        "--probabilities", action="store_true", help="write class probabilities beside it, as a Parquet table"
    )
    flags.add_argument("--batch-size", type=positive_int, metavar="N", help="most utterances at once")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    flags.add_argument(
        "--tracking-uri", metavar="URL", help="MLflow's store; else $MLFLOW_TRACKING_URI, else mlruns/mlflow.db"
    )
    flags.set_defaults(run=run_predict)


def run_download(arguments: argparse.Namespace) -> None:
    """Fetch or unpack a corpus."""
    from speaker.sources.homework import download, unpack_parts
    from speaker.sources.parts import HOMEWORK, find_parts, parts_of_urls, read_manifest

    out = arguments.out
    if arguments.parts:
        made = unpack_parts(find_parts(arguments.parts), out)
    else:
        parts = parts_of_urls(arguments.url) if arguments.url else HOMEWORK
        made = download(read_manifest(arguments.manifest) if arguments.manifest else parts, out, arguments.timeout)
    said = "The corpus is in" if made else "Nothing to do: the corpus is already in"
    print(f"{said} {printable(out)}.")
    print(f"Next:\n  python -m speaker check {shlex.quote(str(out))}")


def run_prepare(arguments: argparse.Namespace) -> None:
    """Make a corpus from audio."""
    from speaker.sources.recordings import Plan, RecordingsError, prepare

    plan = Plan(
        arguments.speakers,
        arguments.test_share,
        arguments.seed,
        arguments.skip_bad,
        arguments.workers,
        arguments.level,
    )
    try:
        prepared = prepare(arguments.audio, arguments.out, plan)
    except RecordingsError as error:
        print("\n".join(map(printable, error.lines)), file=sys.stderr)
        raise
    for line in prepared.bad:
        print(f"left out: {printable(line)}", file=sys.stderr)
    for name in prepared.lost:
        print(f"left out: speaker {name}, of whom no recording can be used", file=sys.stderr)
    for line in prepared.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr)
    corpus = prepared.corpus
    endings = f" ({printable(prepared.endings)})" if prepared.endings else ""
    print(
        f"Prepared {len(corpus.utterances):,} labelled and {len(corpus.test):,} test utterances of "
        f"{len(corpus.speakers):,} speakers, {prepared.frames:,} frames; left out {len(prepared.bad):,} recordings, "
        f"ignored {prepared.ignored:,} other files{endings}; {prepared.clipped:,} recordings are "
        "clipped."
    )
    print(f"Next:\n  python -m speaker check {shlex.quote(str(arguments.out))}")


def run_check(arguments: argparse.Namespace) -> None:
    """Say what is wrong with a corpus, and draw it."""
    from speaker.common.paths import validate_output_path
    from speaker.data.check import PICTURES, check, describe, draw
    from speaker.data.corpus import corpus_folder

    corpus_folder(arguments.corpus)  # that it is another folder is said before where the picture goes
    validate_output_path(arguments.figure, "--figure", arguments.corpus)
    if arguments.figure.suffix not in PICTURES:
        raise UserError(f"--figure must end in {', '.join(PICTURES)}, but got {arguments.figure}; name it so")
    report = check(arguments.corpus)
    print(describe(report))
    draw(report, arguments.figure)
    print(f"figure      {printable(arguments.figure)}")
    if found := report.errors.counts:
        raise UserError(
            f"a corpus must have no errors, but {arguments.corpus} has {found.total():,} of {len(found):,} kinds; fix "
            "them as said above"
        )


def run_predict(arguments: argparse.Namespace) -> None:
    """Predict the test utterances of a corpus with a model, or with the vote of several."""
    from speaker.common import cuda
    from speaker.common.devices import find_compute
    from speaker.common.paths import validate_output_path
    from speaker.common.provenance import provenance
    from speaker.data.corpus import read_corpus
    from speaker.data.labels import read_labels_if_right, write_csv
    from speaker.data.pack import open_pack
    from speaker.data.protocol import Protocol
    from speaker.model.saved_model import load_model
    from speaker.prediction.predict import predict_probabilities, validate_match, validation_gain
    from speaker.prediction.submission import write_probabilities, write_sidecar

    if (arguments.ensemble is None) != (arguments.study is None) or (arguments.ensemble and arguments.model):
        raise UserError("--ensemble N needs --study NAME and no --model; see python -m speaker predict --help")
    validate_output_path(arguments.out, corpus=arguments.data)
    table, sidecar = _beside(arguments.out, ".parquet"), _beside(arguments.out, ".json")
    for path in (table, sidecar):
        validate_output_path(path)
    compute = find_compute(arguments.device, "fp32")
    for fallback in compute.fallbacks:
        print(f"warning: {fallback}", file=sys.stderr)
    device = compute.device
    if device.type == "cuda":
        cuda.use(device)
    corpus = read_corpus(arguments.data)
    labels = read_labels_if_right(corpus)
    if not corpus.test:
        raise UserError(f"{corpus.folder / 'testdata.json'} must list utterances to predict, but lists none")
    with model_folders(arguments) as folders:
        models = [load_model(folder) for folder in folders]
    for trained in models:
        validate_match(trained, corpus)
    note: dict[str, object] = {
        "models": [trained.describe() for trained in models],
        "corpus": {"folder": str(corpus.folder), "manifests_sha256": corpus.key},
        "code": provenance(compute),
    }
    if arguments.ensemble:
        gain = validation_gain(models, corpus, open_pack(corpus, STATE / "packs").digest, device, Protocol())
        note["validation"] = asdict(gain)
        print(gain.describe())
    probabilities = predict_probabilities(models, corpus, corpus.test, device, arguments.batch_size).mean(0)
    speakers = [corpus.speakers[choice] for choice in probabilities.argmax(1).tolist()]
    if labels:
        note["test_accuracy"] = sum(map(str.__eq__, labels, speakers)) / len(labels)
        print(f"Test accuracy {note['test_accuracy']:.4f}, by the {len(labels):,} labels beside the corpus.")
    table.unlink(missing_ok=True)  # of an earlier prediction: what lies beside the CSV belongs to it
    if arguments.probabilities:
        write_probabilities(table, corpus, probabilities)
    write_sidecar(sidecar, note)
    write_csv(arguments.out, corpus, speakers)
    by = models[0].config.label() if len(models) == 1 else f"the vote of {len(models)} models"
    print(f"Wrote {len(speakers):,} predictions of {by} to {arguments.out}.")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def model_folders(arguments: argparse.Namespace) -> Iterator[list[Path]]:
    """Give the folders of the models asked for: a local one, or what MLflow holds.

    MLflow is asked by a process of its own, `python -m experiments fetch`: this package must work without it.
    """
    model = arguments.model or "champion"
    if not arguments.ensemble and Path(model).is_dir():
        yield [Path(model)]
        return
    with tempfile.TemporaryDirectory() as folder:
        best = ["--study", arguments.study, "--best", str(arguments.ensemble)]
        which = best if arguments.ensemble else ["--model", model]
        command = [sys.executable, "-m", "experiments", "fetch", *which, "--out", folder]
        if arguments.tracking_uri:
            command += ["--tracking-uri", arguments.tracking_uri]
        fetched = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if fetched.returncode == BAD_INPUT:
            raise UserError(fetched.stderr.strip().removeprefix("error: "))
        if fetched.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {fetched.returncode}: {fetched.stderr}")
        ranks = range(1, arguments.ensemble + 1) if arguments.ensemble else ()
        yield [Path(folder, str(rank)) for rank in ranks] or [Path(folder)]


def main() -> None:
    """Run a verb."""
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_cli(main)
