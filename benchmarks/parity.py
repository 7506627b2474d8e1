"""Accuracy is not paid for speed: our training against the homework's loop,
on the same utterances, seed by seed.

`python -m benchmarks.parity --data Dataset` trains two points five times each both ways (`--data`
may stand several times; without it, on the demo corpus) and prints the accuracy on whole validation
utterances after the last step. Each seed draws its own validation part, the same for both. `--out
benchmarks/results/parity.json` keeps the results.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import Homework, accuracy_whole
from benchmarks.train import POINTS
from speaker.common.devices import configure_process, find_compute
from speaker.common.provenance import provenance
from speaker.config import DEMO_BUDGET, TrialConfig
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack
from speaker.data.protocol import Protocol
from speaker.sources.demo import build_demo
from speaker.training.metrics import OBJECTIVE
from speaker.training.train import train

# With steps: enough to learn something, few enough to wait for.
CHOSEN = ((POINTS[0], 1_000), (POINTS[2], 300))


@dataclass(frozen=True)
class Task:
    """One training, one way."""

    kind: str  # homework or ours
    config: TrialConfig
    folder: Path  # the corpus
    packs: Path
    device: str
    at_once: int  # trainings


def run(task: Task) -> float:
    """Return the accuracy that a training ends with."""
    compute = find_compute(task.device, "auto", task.at_once)
    configure_process(compute)
    pack = open_pack(read_corpus(task.folder), task.packs)
    protocol = Protocol(split_seed=task.config.seed)
    if task.kind == "ours":
        rows = []
        there = pack.to(compute.device, compute.precision)
        train(task.config, there, protocol, lambda *row: bool(rows.append(row)), compute)
        return float(rows[-1][1][OBJECTIVE])
    torch.set_num_threads(compute.threads)
    learned, valid = protocol.split(pack)
    loop = Homework(task.config, task.folder, learned, compute.device, workers=0)
    for _ in range(task.config.steps):
        loop.step()
    return accuracy_whole(loop.model, task.folder, valid)


def compare(config: TrialConfig, task: Task, seeds: int, pool: Any) -> dict[str, Any]:
    """Return both ways' accuracies, seed by seed,
    and what separates their means in standard errors.
    """
    tasks = [
        replace(task, kind=kind, config=config.replace(seed=seed))
        for seed in range(seeds)
        for kind in ("homework", "ours")
    ]
    values = pool.map(run, tasks, chunksize=1)
    homework, ours = values[::2], values[1::2]
    differences = [one - other for one, other in zip(ours, homework, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(seeds)
    return {
        "homework": homework,
        "ours": ours,
        "mean difference": statistics.mean(differences),
        "its standard error": error,
        "config": config.to_dict(),
    }


def line(corpus: str, config: TrialConfig, result: dict[str, Any]) -> str:
    """Return a comparison in words."""
    spans = (
        f"{name} {statistics.mean(result[name]):.3f} (sd {statistics.stdev(result[name]):.3f})"
        for name in ("homework", "ours")
    )
    return (
        f"{corpus:<12} {config.label():<18} {config.steps:>5} steps   {'   '.join(spans)}   "
        f"difference {result['mean difference']:+.3f} +- {result['its standard error']:.3f}"
    )


def main() -> None:
    """Measure, print and optionally keep."""
    flags = argparse.ArgumentParser(
        description="Our training's accuracy against the homework's loop."
    )
    flags.add_argument(
        "--data", type=Path, action="append", default=[], help="corpus; more than one may be given"
    )
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument("--at-once", type=int, default=2, help="trainings at a time")
    flags.add_argument("--out", type=Path, help="JSON file to keep the results in")
    arguments = flags.parse_args()
    results: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work, context.Pool(arguments.at_once) as pool:
        demo = Path(work, "demo")
        build_demo(demo)
        for folder in (demo, *arguments.data):
            open_pack(read_corpus(folder), Path(work, "packs"))
            for point, steps in CHOSEN:
                length = DEMO_BUDGET.segment_len if folder == demo else point.segment_len
                config = point.with_steps(steps).replace(segment_len=length)
                task = Task(
                    "", config, folder, Path(work, "packs"), arguments.device, arguments.at_once
                )
                result = compare(config, task, arguments.seeds, pool)
                results[f"{folder.name} {config.label()}"] = result
                print(line(folder.name, config, result), flush=True)
    if arguments.out:
        about = {"origin": provenance(find_compute(arguments.device, "auto", arguments.at_once))}
        arguments.out.write_text(json.dumps({"measured": results, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
