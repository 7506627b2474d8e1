"""Steps a second of our training against the homework's loop, in turn and in one run;
and where the time goes.

`python -m benchmarks.train` writes a corpus of random frames with the homework's lengths (3,400
files, 0.4 GB), starts each contestant as processes of its own, which wait while another is
measured, and prints a table. `--device cuda` does the same on a GPU. `--out
benchmarks/results/train.json` keeps the results with their origin and draws them beside it.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import Homework
from benchmarks.packing import write_corpus
from benchmarks.roofline import Roofline
from speaker.common.devices import Compute, ThreadPool, configure_process, find_compute
from speaker.common.provenance import provenance
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.data.corpus import read_corpus
from speaker.data.pack import open_pack
from speaker.data.protocol import Protocol
from speaker.training.cpu_learner import CpuLearner
from speaker.training.evaluation import Evaluator, evaluating
from speaker.training.gpu_learner import GpuLearner
from speaker.training.learner import Learner
from speaker.training.metrics import UTTERANCES_PER_S
from speaker.training.train import open_learner

POINTS = tuple(
    HOMEWORK_BASELINE.replace(
        d_model=d_model, nhead=nhead, num_layers=layers, activation=activation
    )
    for d_model, nhead, layers, activation in (
        (80, 2, 1, "sigmoid"), (128, 4, 2, "relu"), (256, 8, 4, "relu"), (512, 16, 6, "relu"),
    )
)  # fmt: skip
# The homework's: utterances of an evaluation, and steps between two.
VALID, VALID_EVERY = 5_667, 2_000
PARTS = ("data", "forward", "backward", "optimizer")
WARM_UP = 5  # steps


@dataclass(frozen=True)
class Entry:
    """A contestant: who trains, and on what."""

    kind: str  # homework or ours
    config: TrialConfig
    folder: Path  # the corpus, with its packs beside it
    compute: Compute
    workers: int = 2  # of the homework's loader


class BaselineContestant:
    """The homework's loop as a contestant."""

    def __init__(self, entry: Entry) -> None:
        torch.set_num_threads(entry.compute.threads)
        self._workers = entry.workers
        self._loop = Homework(entry.config, entry.folder, None, entry.compute.device, entry.workers)
        self._synchronize = _synchronizer(entry.compute)

    def steps(self, count: int) -> float:
        """Return the seconds of some steps, after those whose batches the workers fetched while
        they waited.
        """
        for _ in range(2 * self._workers):
            self._loop.step()
        return _timed(lambda: [self._loop.step() for _ in range(count)], self._synchronize)

    def crops(self) -> float:
        """Return the utterances a second of a validation by crops,
        its worker processes' start not counted.
        """
        sizes = self._loop.validate()
        for _ in range(8):  # fetched ahead while the workers started
            next(sizes)
        count, began = 0, time.perf_counter()
        while time.perf_counter() < began + 2:
            count += next(sizes)
        seconds = time.perf_counter() - began
        sizes.close()
        return count / seconds

    def parts(self, count: int) -> dict[str, float]:
        """Return the milliseconds of a step's parts."""
        loop, clock = self._loop, _Stopwatch(self._synchronize)
        for _ in range(count):
            batch = clock.lap("data", loop.fetch)
            loss, _, _ = clock.lap("forward", partial(loop.forward, batch))
            clock.lap("backward", loss.backward)
            clock.lap("optimizer", loop.update)
        return clock.milliseconds(count)


class OurContestant:
    """Our training as a contestant."""

    def __init__(self, entry: Entry) -> None:
        configure_process(entry.compute)
        pack = open_pack(read_corpus(entry.folder), entry.folder.parent / "packs")
        pack = pack.to(entry.compute.device, entry.compute.precision)
        rows, _ = Protocol().split(pack)
        pool = ThreadPool(entry.compute.shards)
        self._learner: Learner = open_learner(entry.config, pack, rows, entry.compute, pool)
        self._evaluate = Evaluator(pack, Protocol(), pool)
        self._config = entry.config
        self._synchronize = _synchronizer(entry.compute)
        self._done = 0

    def steps(self, count: int) -> float:
        """Return the seconds of some steps."""
        total = self._config.steps  # after the last one the first comes again
        numbers = [number % total for number in range(self._done, self._done + count)]
        self._done += count
        return _timed(lambda: [self._learner.step(number) for number in numbers], self._synchronize)

    def crops(self) -> float:
        """Return the utterances a second of validations by crops."""
        evaluate, model, loss = self._evaluate, self._learner.model, self._learner.loss
        with evaluating(model, loss):
            return statistics.median(
                evaluate._measure(model, loss, evaluate._crops)[2] for _ in range(5)
            )

    def wholes(self) -> tuple[float, float]:
        """Return the utterances a second over whole ones, and the frames of one on average."""
        learner = self._learner
        lengths = self._evaluate._pack.lengths.float().mean()
        return self._evaluate(learner.model, learner.loss)[UTTERANCES_PER_S], float(lengths)

    def parts(self, count: int) -> dict[str, float]:
        """Return the milliseconds of a step's parts, done one after the other in one thread."""
        learner, clock, size = self._learner, _Stopwatch(self._synchronize), self._config.batch_size
        assert isinstance(learner, CpuLearner | GpuLearner)
        epoch = learner._batches.draw_epoch(0)
        model = learner.model
        for step in range(count):
            number = step % learner._batches.steps_per_epoch
            cut = slice(number * size, (number + 1) * size)
            part = (epoch.rows[cut], epoch.crop_offsets[cut], epoch.is_padded[number])
            mels, lengths, labels = clock.lap("data", partial(learner._batches.gather, *part))
            logits = clock.lap(
                "forward",
                lambda: model(mels, lengths).float(),  # noqa: B023  # called at once
            )
            loss = clock.lap("forward", partial(learner.loss, logits, labels))
            clock.lap("backward", loss.backward)
            clock.lap("optimizer", learner._adamw.step)
            clock.lap("optimizer", learner._refresh)
        return clock.milliseconds(count)


class _Stopwatch:
    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize, self._seconds = synchronize, dict.fromkeys(PARTS, 0.0)

    def lap(self, name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        self._synchronize()
        self._seconds[name] += time.perf_counter() - began
        return result

    def milliseconds(self, count: int) -> dict[str, float]:
        return {name: 1000 * seconds / count for name, seconds in self._seconds.items()}


def _timed(call: Callable[[], object], synchronize: Callable[[], None]) -> float:
    synchronize()
    began = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - began


def _synchronizer(compute: Compute) -> Callable[[], None]:
    return torch.cuda.synchronize if compute.device.type == "cuda" else lambda: None


def _memory(device: torch.device) -> float:
    """Return the most memory this process and its largest child held, in MiB: a GPU's,
    or the machine's.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_maxrss for each in who) / 1024


def serve(entry: Entry, connection: Connection) -> None:
    """Be a contestant: answer each request, (name of a method, arguments), until there is none."""
    kind = BaselineContestant if entry.kind == "homework" else OurContestant
    contestant: BaselineContestant | OurContestant = kind(entry)
    contestant.steps(WARM_UP)
    connection.send("ready")
    while request := connection.recv():
        name, arguments = request
        connection.send(
            _memory(entry.compute.device)
            if name == "memory"
            else getattr(contestant, name)(*arguments)
        )


class Team:
    """A contestant's processes: one, or several at once."""

    def __init__(self, entry: Entry, size: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(entry, theirs))
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        self.ask_ready()

    def ask_ready(self) -> None:
        """Wait until all have warmed up."""
        for connection in self._connections:
            connection.recv()

    def ask(self, name: str, *arguments: object) -> list[Any]:
        """Call a method in each process at once and return what they give."""
        for connection in self._connections:
            connection.send((name, arguments))
        return [connection.recv() for connection in self._connections]

    def rate(self, count: int) -> float:
        """Return the steps a second of all processes together, over `count` steps of each."""
        return count * len(self._processes) / max(self.ask("steps", count))

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(None)
            process.join()


def measure(config: TrialConfig, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one point: all contestants in turn, round after round."""
    compute = find_compute(arguments.device, "auto")
    alone = replace(compute, threads=max(1, compute.threads // arguments.together))
    plain = replace(compute, precision=torch.float32)
    entry = Entry("ours", config, folder, compute, arguments.workers)
    teams = {
        "homework": Team(replace(entry, kind="homework")),
        "ours": Team(entry),
        f"ours, {arguments.together} at once": Team(
            replace(entry, compute=alone), arguments.together
        ),
        "ours, fp32": Team(replace(entry, compute=plain)),
    }
    counts = {
        name: max(3, int(arguments.seconds * team.rate(3) / len(team._processes)))
        for name, team in teams.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(arguments.rounds):
        for name, team in teams.items():
            rates[name].append(team.rate(counts[name]))
    crops: dict[str, list[float]] = {"homework": [], "ours": []}
    for _ in range(arguments.rounds):
        for name, values in crops.items():
            values += teams[name].ask("crops")
    parts = {
        name: teams[name].ask("parts", 20)[0]
        for name in ("homework", f"ours, {arguments.together} at once")
    }
    ((wholes, frames),) = teams["ours"].ask("wholes")
    memory = {name: max(team.ask("memory")) for name, team in teams.items()}
    for team in teams.values():
        team.close()
    roofline = Roofline.of(config, compute)
    evaluating = VALID / wholes + VALID / statistics.median(crops["ours"])
    learning = VALID_EVERY / statistics.median(rates["ours"])
    return {
        "steps a second": rates,
        "over homework": {name: _ratio(rates[name], rates["homework"]) for name in rates},
        "crops a second": crops,
        "crops over homework": _ratio(crops["ours"], crops["homework"]),
        "whole utterances a second": wholes,
        "frames of an utterance": frames,
        "share of a training's time in evaluations": evaluating / (evaluating + learning),
        "milliseconds of a step's parts": parts,
        "peak memory, MiB": memory,
        "roofline": roofline.describe(),
        "fraction of the roofline": {
            name: statistics.median(each) * roofline.seconds for name, each in rates.items()
        },
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios round by round: neighbours in time saw the same machine."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results in columns."""
    lines = []
    for label, result in results.items():
        least = result["roofline"]
        lines.append(
            f"\n{label:<28} {'steps/s':>9} {'(min to max)':>17} {'x homework':>11} {'roofline':>9} "
            f"{'MiB':>7}"
        )
        for name, rates in result["steps a second"].items():
            span = f"({min(rates):.2f} to {max(rates):.2f})"
            lines.append(
                f"  {name:<26} {statistics.median(rates):>9.2f} {span:>17} "
                f"{result['over homework'][name]:>11.2f} "
                f"{result['fraction of the roofline'][name]:>9.0%} "
                f"{result['peak memory, MiB'][name]:>7,.0f}"
            )
        both = (
            f"{statistics.median(result['crops a second'][name]):,.0f}"
            for name in ("ours", "homework")
        )
        lines.append(
            f"  validation by crops, utterances/s: ours {', homework '.join(both)}, x "
            f"{result['crops over homework']:.2f}; whole, ours: "
            f"{result['whole utterances a second']:,.0f}"
        )
        for name, parts in result["milliseconds of a step's parts"].items():
            shares = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
            lines.append(f"  ms of a step's parts, {name} (one process of them): {shares}")
        share = result["share of a training's time in evaluations"]
        lines.append(
            f"  evaluations take {share:.0%} of a training's time, as often and as many utterances "
            "as the homework's"
        )
        lines.append(f"  roofline: {1000 * least['seconds']:.2f} ms, {least['bound by']}")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw how many times as fast as the homework's loop each contestant is,
    and where a step's time goes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    names = [name for name in next(iter(results.values()))["over homework"] if name != "homework"]
    for number, name in enumerate(names):
        places = [index + 0.27 * (number - 1) for index in range(len(results))]
        bars = left.bar(
            places, [result["over homework"][name] for result in results.values()], 0.25, label=name
        )
        left.bar_label(bars, fmt="%.1f", fontsize=8)
    left.axhline(1, color="grey", linewidth=1)
    left.set_xticks(range(len(results)), list(results))
    left.set_ylabel("steps a second, times the homework's loop")
    left.legend()
    for index, result in enumerate(results.values()):
        for offset, parts in zip(
            (-0.2, 0.2), result["milliseconds of a step's parts"].values(), strict=True
        ):
            bottom = 0.0
            total = sum(result["milliseconds of a step's parts"]["homework"].values())
            for color, part in zip(("C0", "C1", "C2", "C3"), PARTS, strict=True):
                share = parts[part] / total
                label = part if index == 0 and offset < 0 else None
                right.bar(
                    index + offset,
                    share,
                    0.36,
                    bottom,
                    color=color,
                    alpha=1 if offset < 0 else 0.6,
                    label=label,
                )
                bottom += share
    right.set_xticks(range(len(results)), list(results))
    right.set_ylabel(
        "time of a step's parts, homework = 1\n(left: homework, right: ours in one thread)"
    )
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print and optionally keep."""
    flags = argparse.ArgumentParser(description="Our training against the homework's loop.")
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument(
        "--rounds", type=int, default=5, help="each contestant is run so often, in turn"
    )
    flags.add_argument("--seconds", type=float, default=2.5, help="of one contestant's turn")
    flags.add_argument("--together", type=int, default=2, help="trials at once; 8 on a GPU")
    flags.add_argument(
        "--workers", type=int, default=2, help="of the homework's loader; 8 on a GPU"
    )
    flags.add_argument(
        "--points", type=int, nargs="+", default=range(len(POINTS)), help="which of the four"
    )
    flags.add_argument("--share", type=float, default=0.06, help="of the homework's corpus")
    flags.add_argument(
        "--out", type=Path, help="JSON file to keep the results in; a figure goes beside it"
    )
    arguments = flags.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "corpus")
        write_corpus(folder, arguments.share)
        open_pack(read_corpus(folder), folder.parent / "packs")
        for index in arguments.points:
            results[POINTS[index].label()] = measure(POINTS[index], folder, arguments)
            print(table({POINTS[index].label(): results[POINTS[index].label()]}), flush=True)
    if arguments.out:
        settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        about = {"settings": settings, "origin": provenance(find_compute(arguments.device, "auto"))}
        arguments.out.write_text(json.dumps({"measured": results, **about}, indent=2) + "\n")
        draw(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
