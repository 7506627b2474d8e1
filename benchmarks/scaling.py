"""How a step's time and memory grow with the model's width and depth,
the batch and the length of a crop.

`python -m benchmarks.scaling --out benchmarks/results/scaling.json` varies one number at a time
around (128, 4, 2), each in a process of its own, and draws what it measures beside what operations
and bytes would make of the first value.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.packing import write_corpus
from benchmarks.roofline import count_memory, count_traffic
from speaker.common.devices import ThreadPool, configure_process, find_compute
from speaker.common.provenance import provenance
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack
from speaker.data.protocol import Protocol
from speaker.model.classifier import count_operations
from speaker.training.train import open_learner

CENTER = HOMEWORK_BASELINE.replace(d_model=128, nhead=4, num_layers=2, activation="relu")
SCALED = {
    "d_model": (80, 128, 256, 512),
    "num_layers": (1, 2, 4, 8),
    "batch_size": (32, 64, 128, 256, 512),
    "segment_len": (64, 128, 256, 512, 1024),
}


def measure(config: TrialConfig, folder: Path, device: str) -> tuple[float, float]:
    """Return the median seconds of a step, and the MiB that a training adds to a process."""
    compute = find_compute(device, "auto")
    configure_process(compute)
    pack = open_pack(read_corpus(folder), folder.parent / "packs").to(
        compute.device, compute.precision
    )
    rows, _ = Protocol().split(pack)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    with (
        ThreadPool(compute.shards) as pool,
        open_learner(config, pack, rows, compute, pool) as learner,
    ):
        number = 0
        began = time.perf_counter()
        while number < 8 or time.perf_counter() < began + 3:
            start = time.perf_counter()
            learner.step(number)
            if compute.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            number += 1
    if compute.device.type == "cuda":
        return sorted(seconds[3:])[len(seconds[3:]) // 2], torch.cuda.max_memory_reserved() / 2**20
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return sorted(seconds[3:])[len(seconds[3:]) // 2], after - before


def draw(measured: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw time above and memory below, each beside its expected slope."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(measured), figsize=(16, 7), layout="constrained")
    for column, (name, rows) in enumerate(measured.items()):
        values = [row["value"] for row in rows]
        for axis, quantity, models in (
            (axes[0][column], "ms a step", ("operations", "bytes")),
            (axes[1][column], "MiB", ("kept numbers",)),
        ):
            axis.loglog(values, [row[quantity] for row in rows], "o-", label="measured")
            for model, style in zip(models, ("--", ":"), strict=False):
                first = rows[0][quantity] / rows[0][model]
                axis.loglog(
                    values,
                    [first * row[model] for row in rows],
                    style,
                    color="grey",
                    label=f"as {model} grow",
                )
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
            axis.set_xlabel(name)
            axis.set_ylabel(quantity)
            axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measure, print and optionally keep."""
    flags = argparse.ArgumentParser(description="How the cost of a step grows.")
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument(
        "--out", type=Path, help="JSON file to keep the results in; a figure goes beside it"
    )
    arguments = flags.parse_args()
    measured: dict[str, list[dict[str, float]]] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "corpus")
        write_corpus(folder, 0.02)
        open_pack(read_corpus(folder), folder.parent / "packs")
        for name, values in SCALED.items():
            measured[name] = []
            for value in values:
                config = CENTER.replace(**{name: value})
                with context.Pool(1) as pool:
                    seconds, memory = pool.apply(measure, (config, folder, arguments.device))
                row = {
                    "value": value,
                    "ms a step": 1000 * seconds,
                    "MiB": memory,
                    "operations": count_operations(config),
                    "bytes": count_traffic(config),
                    "kept numbers": count_memory(config),
                }
                measured[name].append(row)
                print(
                    f"{name:<12} {value:>5} {row['ms a step']:>10.1f} ms {memory:>9,.0f} MiB",
                    flush=True,
                )
    if arguments.out:
        about = {"origin": provenance(find_compute(arguments.device, "auto"))}
        arguments.out.write_text(json.dumps({"measured": measured, **about}, indent=2) + "\n")
        draw(measured, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
