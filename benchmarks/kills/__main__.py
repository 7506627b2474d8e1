"""Kill searches with SIGKILL between any two of their writes, and see that nothing is lost.

`python -m benchmarks.kills --kills 500 --seed 0` runs real searches of a few seconds, each killed
several times at points that are drawn by the seed, until it ends; what it then leaves must be what
an undisturbed search leaves: points, accuracies, weights, rows, runs, files. It prints a line a
search and a table of points, and keeps all of it with its origin. `--replay "one sql.commit.after@9
mlflow.log_batch.before@2"` repeats the kills of such a line, and `--keep` leaves the folders.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.kills.bench import KINDS, Bench, Outcome, open_bench, tally
from benchmarks.kills.plan import Kill
from experiments.context import PACKAGES
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from speaker.common.signals import install_signal_handlers

RESULTS = Path(__file__).parents[1] / "results" / "kills.json"
INTERVALS = (0.0, 0.0, 0.05, 1.0)  # seconds between checkpoints
VERDICTS = ("equal", "different", "left over", "error")
SPREAD = 0.3  # of a search, between two kills at the most
FAST = Path("/dev/shm")  # noqa: S108  # a kill spares the files of a memory disk, too


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    flags = argparse.ArgumentParser(prog="benchmarks.kills", description=__doc__)
    flags.add_argument("--kills", type=int, default=500, help="in all")
    flags.add_argument("--each", type=int, default=8, help="at most, of one search")
    flags.add_argument("--seed", type=int, default=0)
    here = [name for name, kind in KINDS.items() if not kind.on_ray or find_spec("ray")]
    flags.add_argument("--kinds", default=",".join(here), help="of searches, with commas between")
    flags.add_argument("--replay", nargs="+", metavar="'KIND POINT@N ...'", help="searches again")
    flags.add_argument("--folder", type=Path, default=FAST if FAST.is_dir() else None)
    flags.add_argument("--keep", action="store_true", help="the folders of all searches")
    flags.add_argument("--out", type=Path, default=RESULTS, help="JSON to keep the results in")
    return flags


def draw(points: dict[str, int], used: Counter[str], most: int, rng: random.Random) -> list[Kill]:
    """Return the kills of a search, given how often an undisturbed one passes each point, and how
    often each was drawn already: the rarest.
    """
    order = sorted(points, key=lambda point: (used[point], rng.random()))[:most]
    used.update(order)
    return [Kill(point, 1 + int(points[point] * rng.uniform(0, SPREAD))) for point in order]


def searches(bench: Bench, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Yield searches of all kinds in turn until there are enough kills."""
    rng = random.Random(arguments.seed)  # noqa: S311  # no secret
    used: dict[str, Counter[str]] = {}
    left = arguments.kills
    while left > 0:
        for kind in arguments.kinds.split(","):
            points, counts = bench.points(kind), used.setdefault(kind, Counter())
            plan = draw(points, counts, min(arguments.each, left), rng)
            outcome = bench.search(kind, plan, rng.choice(INTERVALS))
            counts.subtract(kill.point for kill in plan if kill not in outcome.kills)
            left -= len(outcome.kills)
            yield outcome
            if left <= 0:
                return


def replays(bench: Bench, arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Yield the searches that are asked for, once more."""
    for words in arguments.replay:
        kind, *kills = words.split()
        yield bench.search(kind, list(map(Kill.parse, kills)))


def describe(outcome: Outcome) -> str:
    """Return a search in a line, and what is not as it should be in others."""
    kills = " ".join(map(str, outcome.kills))
    lines = [f"{outcome.verdict():<10} {outcome.seconds:6.1f} s  {outcome.kind} {kills}"]
    lines += [f"    {line}" for line in (outcome.error, *outcome.different, *outcome.left) if line]
    return "\n".join(lines)


def table(outcomes: list[Outcome]) -> str:
    """Return how many kills there were at each point, and what came of them."""
    counts = tally(outcomes)
    lines = [f"{'point':<44} {'kind':<9}" + "".join(f"{name:>10}" for name in VERDICTS)]
    for (point, kind), found in sorted(counts.items()):
        lines.append(f"{point:<44} {kind:<9}" + "".join(f"{found[name]:>10}" for name in VERDICTS))
    total = sum(counts.values(), Counter())
    lines.append(f"{'all':<44} {'':<9}" + "".join(f"{total[name]:>10}" for name in VERDICTS))
    lines.append(
        f"{sum(total.values())} kills at {len({point for point, _ in counts})} points in "
        f"{len(outcomes)} searches"
    )
    return "\n".join(lines)


def as_json(outcomes: list[Outcome], seed: int) -> str:
    """Return the results with their origin."""
    points: dict[str, dict[str, Counter[str]]] = {}
    for (point, kind), found in sorted(tally(outcomes).items()):
        points.setdefault(point, {})[kind] = found
    kept = {
        "kills": sum(len(outcome.kills) for outcome in outcomes),
        "searches": Counter(f"{each.kind}, {each.verdict()}" for each in outcomes),
        "temporary folders left": sum(outcome.temporary for outcome in outcomes),
        "points": points,
        "unequal": [describe(each) for each in outcomes if each.verdict() != "equal"],
        "seed": seed,
        "origin": provenance(find_compute("auto", "auto"), PACKAGES),
    }
    return json.dumps(kept, indent=1) + "\n"


@contextlib.contextmanager
def _removed(folder: Path, is_kept: bool) -> Iterator[None]:
    """Remove a folder after a `with` block, or say where it is."""
    try:
        yield
    finally:
        if is_kept:
            print(f"All is kept in {folder}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Search, kill, compare, print and keep. Exit code 1 where a search was not as it should be."""
    arguments = parser().parse_args()
    install_signal_handlers()  # so that SIGTERM, too, leaves no server behind
    outcomes: list[Outcome] = []
    run: Callable[[Bench, argparse.Namespace], Iterator[Outcome]]
    run = replays if arguments.replay else searches
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=arguments.folder))
    with _removed(folder, arguments.keep), open_bench(folder, keep=arguments.keep) as bench:
        for outcome in run(bench, arguments):
            outcomes.append(outcome)
            print(describe(outcome), flush=True)
            if not arguments.replay:
                arguments.out.write_text(as_json(outcomes, arguments.seed))
    print(f"\n{table(outcomes)}")
    sys.exit(any(outcome.verdict() != "equal" for outcome in outcomes))


if __name__ == "__main__":
    main()
