"""`python -m speaker VERB`: everything about data and prediction."""

import argparse
import contextlib
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from speaker.common.cli import (
    Parser,
    natural,
    positive_float,
    positive_int,
    printable,
    run_cli,
    share,
)
from speaker.common.errors import UserError
from speaker.common.paths import next_commands
from speaker.prediction.verbs import add_verbs, is_local


def parser() -> Parser:
    """Return the command line."""
    flags = Parser(
        prog="python -m speaker", description="Speaker classification: data and prediction."
    )
    verbs = flags.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_download(
        verbs.add_parser("download", help="fetch the homework's corpus, or unpack its parts")
    )
    _add_prepare(verbs.add_parser("prepare", help="make a corpus from a folder of audio"))
    _add_check(
        verbs.add_parser(
            "check", help="say all that is wrong with a corpus, and what it looks like"
        )
    )
    add_verbs(verbs, local_model)
    return flags


def _add_download(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--out", type=Path, default=Path("Dataset"), metavar="FOLDER", help="corpus to make"
    )
    source = flags.add_mutually_exclusive_group()
    source.add_argument(
        "--manifest", type=Path, metavar="FILE", help="JSON with the URLs of the archive's parts"
    )
    source.add_argument(
        "--url", action="append", metavar="URL", help="of one part; repeat it for each, in order"
    )
    source.add_argument(
        "--parts",
        type=Path,
        metavar="FOLDER",
        help="with the parts, or a .tar.gz or .zip, fetched by other means",
    )
    flags.add_argument(
        "--timeout",
        type=positive_float,
        default=30.0,
        metavar="SECONDS",
        help="after which a server has stalled",
    )
    flags.set_defaults(run=run_download)


def _add_prepare(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--audio",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="with a folder of recordings for each speaker",
    )
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="corpus to make")
    flags.add_argument(
        "--speakers", type=positive_int, metavar="N", help="how many to sample; all if not given"
    )
    flags.add_argument(
        "--test-share",
        type=share,
        default=0.0,
        metavar="X",
        help="of each speaker's utterances, to be held out",
    )
    flags.add_argument(
        "--seed", type=natural, default=0, help="decides what is sampled and held out"
    )
    flags.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), metavar="N", help="processes"
    )
    flags.add_argument(
        "--level",
        type=positive_int,
        metavar="N",
        help="the speakers' folders lie N deep in --audio; if not given, 1, but checked",
    )
    flags.add_argument(
        "--skip-bad", action="store_true", help="leave out recordings that cannot be used"
    )
    flags.set_defaults(run=run_prepare)


def _add_check(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with metadata.json")
    flags.add_argument(
        "--figure", type=Path, default=Path("corpus.png"), metavar="FILE", help="picture to draw"
    )
    flags.add_argument(
        "--pack", action="store_true", help="read the pack that searches have made of it, too"
    )
    flags.set_defaults(run=run_check)


def run_download(arguments: argparse.Namespace) -> None:
    """Fetch or unpack a corpus."""
    from speaker.sources.homework import download, unpack_parts
    from speaker.sources.parts import HOMEWORK, find_parts, parts_of_urls, read_manifest

    out = arguments.out
    if arguments.parts:
        made = unpack_parts(find_parts(arguments.parts), out)
    else:
        parts = parts_of_urls(arguments.url) if arguments.url else HOMEWORK
        made = download(
            read_manifest(arguments.manifest) if arguments.manifest else parts,
            out,
            arguments.timeout,
        )
    said = "The corpus is in" if made else "Nothing to do: the corpus is already in"
    print(f"{said} {printable(out)}.")
    print(f"Next:\n{next_commands(f'speaker check {shlex.quote(str(out))}')}")


def run_prepare(arguments: argparse.Namespace) -> None:
    """Make a corpus from audio."""
    from speaker.sources.prepare import PrepareOptions, RecordingsError, prepare

    plan = PrepareOptions(
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
        f"{len(corpus.speakers):,} speakers, {prepared.frames:,} frames; left out "
        f"{len(prepared.bad):,} recordings, ignored {prepared.ignored:,} other files{endings}; "
        f"{prepared.clipped:,} recordings are clipped."
    )
    print(f"Next:\n{next_commands(f'speaker check {shlex.quote(str(arguments.out))}')}")


def run_check(arguments: argparse.Namespace) -> None:
    """Say what is wrong with a corpus, and draw it."""
    from speaker.common.paths import STATE, validate_output_path
    from speaker.data.check import PICTURES, check, describe, draw
    from speaker.data.corpus import corpus_folder, read_corpus
    from speaker.data.pack import check_pack

    # That it is another folder is said before where the picture goes.
    corpus_folder(arguments.corpus)
    validate_output_path(arguments.figure, "--figure", arguments.corpus)
    if arguments.figure.suffix not in PICTURES:
        raise UserError(
            f"--figure must end in {', '.join(PICTURES)}, but got {arguments.figure}; name it so"
        )
    report = check(arguments.corpus)
    print(describe(report))
    draw(report, arguments.figure)
    print(f"figure      {printable(arguments.figure)}")
    if arguments.pack:
        place = check_pack(read_corpus(arguments.corpus), STATE / "packs")
        print(f"pack        {printable(place)} is as it was made")
    if found := report.errors.counts:
        raise UserError(
            f"a corpus must have no errors, but {arguments.corpus} has {found.total():,} of "
            f"{len(found):,} kinds; fix them as said above"
        )


def local_model(arguments: argparse.Namespace) -> contextlib.nullcontext[list[Path]]:
    """Give the folder that is asked for. Any other model is the business of `experiments`."""
    if not is_local(arguments):
        become_experiments(arguments.model or "champion")
    return contextlib.nullcontext([Path(arguments.model)])


def become_experiments(model: str) -> NoReturn:
    """Go on as `python -m experiments` with the same words: this package must work without MLflow.

    Raises UserError where the search's part of this program is missing.
    """
    if find_spec("experiments") is None:
        raise UserError(
            "--model must be a folder with a saved model where the search's part of this program "
            f"is missing, but got {model!r}; give a folder"
        )
    sys.stdout.flush()
    command = [sys.executable, "-m", "experiments", *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606  # there is no shell, and the program is ours


def main() -> None:
    """Run a verb."""
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_cli(main)
