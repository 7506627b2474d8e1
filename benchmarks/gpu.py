"""All that only a card can settle, in one command of at most ten minutes:
`python -m benchmarks.gpu`.

Runs the tests marked `cuda`, then measures our training against the homework's loop, against the
least time a step can take, and with several jobs at once. Prints a table of what holds and keeps
it, with its origin, in `benchmarks/results/gpu.json`. `--device cpu` rehearses it where there is no
card.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.packing import write_corpus
from benchmarks.train import POINTS, Entry, Team, measure
from speaker.common.cli import BAD_INPUT
from speaker.common.devices import Compute, find_compute
from speaker.common.errors import UserError
from speaker.common.provenance import provenance
from speaker.config import TrialConfig
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack

RESULTS = Path(__file__).parent / "results"
JOBS = (1, 2, 4, 8)
MAX_EVALUATING = 0.10  # of a training's time, at the homework's cadence
MIN_OF_ROOFLINE = 0.40  # of the least time a step of the largest point can take
MIN_TOGETHER = 3.0  # times the trials an hour of one job, by eight
MIN_TIMES = {POINTS[0]: 60.0, POINTS[-1]: 15.0}  # the homework's loop


@dataclass(frozen=True)
class Row:
    """A line of the table: what was to hold, and what was seen."""

    what: str
    wanted: str
    seen: str
    holds: bool

    def describe(self) -> str:
        """Return the line."""
        verdict = "holds" if self.holds else "FAILS"
        return f"{verdict:<6} {self.what:<72} {self.wanted:>14} {self.seen:>24}"


def run_tests(device: str) -> Row:
    """Run the tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env={**os.environ, "TEST_DEVICE": device}, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout.splitlines()[-1])
    return Row("tests marked cuda", "all", ", ".join(counts), done.returncode == 0)


def measure_together(
    config: TrialConfig, folder: Path, compute: Compute, seconds: float
) -> dict[int, float]:
    """Return the steps a second of all jobs, by their number."""
    rates = {}
    for jobs in JOBS:
        each = replace(compute, threads=max(1, compute.threads // jobs))
        team = Team(Entry("ours", config, folder, each), jobs)
        count = max(3, int(seconds * team.rate(20) / jobs))
        rates[jobs] = max(team.rate(count) for _ in range(3))
        team.close()
    return rates


def judge(results: dict[str, dict[str, Any]], together: dict[int, float]) -> Iterator[Row]:
    """Yield what was to hold of the measurements."""
    measured = [config for config in POINTS if config.label() in results]
    for config, least in MIN_TIMES.items():
        if config in measured:
            times = results[config.label()]["over homework"]["ours"]
            yield Row(
                f"steps a second, {config.label()}",
                f">= {least:g} homework",
                f"{times:.1f}",
                times >= least,
            )
    largest = measured[-1].label()
    share = results[largest]["fraction of the roofline"]["ours"]
    yield Row(
        f"fraction of the roofline, {largest}",
        f">= {MIN_OF_ROOFLINE:.0%}",
        f"{share:.0%}",
        share >= MIN_OF_ROOFLINE,
    )
    for label, result in results.items():
        share = result["share of a training's time in evaluations"]
        yield Row(
            f"evaluations, {label}",
            f"<= {MAX_EVALUATING:.0%}",
            f"{share:.0%}",
            share <= MAX_EVALUATING,
        )
    gain = together[JOBS[-1]] / together[1]
    hours = ", ".join(f"{3600 * rate / POINTS[0].steps:.1f}" for rate in together.values())
    what = f"trials an hour, {POINTS[0].label()}, {', '.join(map(str, JOBS))} jobs: {hours}"
    yield Row(what, f">= {MIN_TOGETHER:g} times", f"{gain:.1f}", gain >= MIN_TOGETHER)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    flags = argparse.ArgumentParser(description="What only a card can settle.")
    flags.add_argument("--device", default="cuda:0", help="cuda, cuda:N, or cpu for a rehearsal")
    flags.add_argument(
        "--rounds", type=int, default=3, help="each contestant is run so often, in turn"
    )
    flags.add_argument("--seconds", type=float, default=1.5, help="of one contestant's turn")
    flags.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the homework's loader"
    )
    flags.add_argument(
        "--points", type=int, nargs="+", default=range(len(POINTS)), help="which of the four"
    )
    flags.add_argument("--share", type=float, default=0.06, help="of the homework's corpus")
    flags.add_argument(
        "--together", type=int, default=2, help="trials at once beside the homework's loop"
    )
    flags.add_argument(
        "--out", type=Path, default=RESULTS / "gpu.json", help="JSON file to keep the results in"
    )
    return flags


def main() -> None:
    """Run the tests, measure, print and keep."""
    arguments = parser().parse_args()
    if find_spec("pytest") is None:
        print(
            "error: the tests need pytest, but it is missing; pip install -r requirements-dev.txt",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    try:
        compute = find_compute(arguments.device, "auto")
    except UserError as error:
        print(f"error: {error}, or rehearse with --device cpu", file=sys.stderr)
        sys.exit(BAD_INPUT)
    rows = [run_tests(arguments.device)]
    results = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "corpus")
        write_corpus(folder, arguments.share)
        open_pack(read_corpus(folder), folder.parent / "packs")
        for config in (POINTS[index] for index in sorted(arguments.points)):
            results[config.label()] = measure(config, folder, arguments)
        together = measure_together(POINTS[0], folder, compute, arguments.seconds)
    rows += judge(results, together)
    print(f"On {compute.describe()}:")
    print("\n".join(row.describe() for row in rows))
    kept = {
        "table": [vars(row) for row in rows],
        "measured": results,
        "steps a second by jobs": together,
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
        "origin": provenance(compute),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(kept, indent=2) + "\n")
    sys.exit(not all(row.holds for row in rows))


if __name__ == "__main__":
    main()
