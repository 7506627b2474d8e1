"""Many first starts of one study at once, in a folder in which nothing is there yet.

`python -m benchmarks.starts` starts 16 searches of the built-in demo at the same moment, twenty
times on SQLite, on a PostgreSQL server and on a Ray cluster: they make the corpus, the databases
and the study, and share its 16 trials. All must end well, and each trial must have been trained
once. `--fresh` starts new interpreters, which spend most of their seconds on imports.
"""

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.context import PACKAGES
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from tests.clusters import ray_cluster
from tests.helpers import STUDY, assert_whole, start
from tests.servers import PostgresServer
from tests.warm import start_warm

RESULTS = Path(__file__).parent / "results" / "starts.json"
KINDS = ("sqlite", "postgres", "ray")
CORES = 64  # that Ray believes to have: each of its workers takes some
# Points that are small: what is looked for is between the starts, not in the trainings.
SEARCH = (
    "--study", STUDY, "--steps", "2", "--sampler", "random", "--pruner", "none",
    "--fix", "dim_feedforward=32", "--choices", "d_model=80,128", "--choices", "num_layers=1,2",
)  # fmt: skip
Wait = Callable[[], "subprocess.CompletedProcess[str]"]


def main() -> None:
    """Print a line a round, and keep all of them with their origin."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--rounds", type=int, default=20)
    flags.add_argument("--starts", type=int, default=16, help="at once")
    flags.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    flags.add_argument("--fresh", action="store_true", help="start new interpreters")
    flags.add_argument("--folder", type=Path, help="for all that the searches keep")
    flags.add_argument("--out", type=Path, default=RESULTS)
    arguments = flags.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in arguments.kinds:
            with _open(kind, Path(folder) / kind) as words_of:
                for number in range(arguments.rounds):
                    home = Path(folder) / f"{kind}-{number}"
                    home.mkdir()
                    row = {"kind": kind, "starts": arguments.starts, "fresh": arguments.fresh}
                    row |= run_round(home, words_of(number), arguments.starts, arguments.fresh)
                    print(*row.items(), flush=True)
                    rows.append(row)
                    arguments.out.write_text(_as_json(rows))
    raise SystemExit(any(row["fault"] for row in rows))


def run_round(home: Path, words: list[str], starts: int, fresh: bool) -> dict[str, Any]:
    """Start so many searches at once in a folder; return their seconds and what went wrong."""
    command = ["search.py", *SEARCH, "--trials", str(starts), *words]
    begun = time.monotonic()
    waits = [_start(home, command, fresh) for _ in range(starts)]
    ended = [wait() for wait in waits]
    seconds = time.monotonic() - begun
    fault = "\n".join(each.stderr.strip()[-2000:] for each in ended if each.returncode)
    if not fault:
        try:
            assert_whole(home, starts, words[1] if "--storage" in words else "")
        except AssertionError as error:
            fault = str(error) or repr(error)
    return {"seconds": round(seconds, 1), "fault": fault}


def _start(home: Path, command: list[str], fresh: bool) -> Wait:
    if not fresh:
        return start_warm(home, command, {}).wait
    process = start(home, *command)
    return partial(_wait, process)


def _wait(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextlib.contextmanager
def _open(kind: str, folder: Path) -> Iterator[Callable[[int], list[str]]]:
    """Start what a kind needs, and give the words of a round's commands by its number."""
    if kind == "sqlite":
        yield lambda _: []
    elif kind == "postgres":
        with contextlib.closing(PostgresServer(folder)) as server:
            yield lambda number: ["--storage", server.make(f"round_{number}")]
    else:
        with ray_cluster(CORES) as cluster:
            yield lambda _: ["--engine", "ray", "--ray-address", cluster.address]


def _as_json(rows: list[dict[str, Any]]) -> str:
    kept = {"rows": rows, "origin": provenance(find_compute("auto", "auto"), PACKAGES)}
    return json.dumps(kept, indent=1) + "\n"


if __name__ == "__main__":
    main()
