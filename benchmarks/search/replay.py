"""Replay searches on a table of trained points: steps, regret, and how honest the answer is.

`python -m benchmarks.search.replay TABLE --replays 200 --out FILE` runs whole studies in memory,
by the product's own samplers, pruners, presets and estimates; a trial's training is looked up. A
point that the table lacks stands for the nearest one that it has. What a point is worth in truth is
the accuracy of its models on utterances that no search saw, smoothed over all points of the table.
"""

import argparse
import json
import random
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.search.table import read_table
from experiments.analysis.curves import Curve, estimate
from experiments.analysis.leaderboard import agreement, places
from experiments.study.presets import homework_points
from experiments.study.pruners import PRUNERS
from experiments.study.samplers import make_sampler
from experiments.study.space import HOMEWORK
from experiments.study.trial import PRESET, listen
from speaker.common.seeding import derive_seed
from speaker.config import HOMEWORK_BASELINE
from speaker.training.metrics import OBJECTIVE, hits_of

TRIALS = 50
EVALUATIONS = 5  # of a trial, as search.py makes them


@dataclass(frozen=True)
class Strategy:
    """How a search proposes, stops and answers."""

    name: str
    sampler: str  # of SAMPLERS, or a plain one of Optuna's: "plain tpe", "plain random"
    pruner: str  # of PRUNERS, or "plain median"
    by_model: bool  # whether the answer is the model's, or the best shown number


STRATEGIES = (
    Strategy("random, none stopped", "plain random", "none", False),
    Strategy("Optuna's defaults, none stopped", "plain tpe", "none", False),
    Strategy("Optuna's defaults + median", "plain tpe", "plain median", False),
    Strategy("before: TPE + median", "plain tpe", "median", False),
    Strategy("TPE + halving", "plain tpe", "halving", False),
    Strategy("TPE, no repeats, + halving", "tpe", "halving", False),
    Strategy("the same, answer by the model", "tpe", "halving", True),
    Strategy("GP, no repeats, + halving, by the model", "gp", "halving", True),
    Strategy("random, no repeats, + halving, by the model", "random", "halving", True),
    Strategy("TPE, no repeats, none stopped, by the model", "tpe", "none", True),
)


@dataclass(frozen=True)
class Answer:
    """How one replay ended."""

    steps: float  # in whole trainings
    seconds: float
    regret: float  # true accuracy lost against the best point
    flattery: float  # reported less true accuracy, beyond the validation part's own luck
    covered: bool | None  # whether the interval holds the true value
    covered_but_for_luck: bool | None  # or would, on a validation part as hard as the unseen
    repeats: int


class Table:
    """Trained points, and their worth in truth."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for line in read_table(path):
            if line["outcome"] == "complete":
                self.lines.setdefault(tuple(line["point"].values()), []).append(line)
        self.points = list(self.lines)
        fields = list(HOMEWORK.definition())
        every = [dict(zip(fields, point, strict=True)) for point in self.points]
        self._fields, self._where = fields, dict(zip(self.points, places(every), strict=True))
        curves = [
            Curve(self._where[point], ((1.0, line["unseen"]),))
            for point in self.points
            for line in self.lines[point]
        ]
        owners = [point for point in self.points for _ in self.lines[point]]
        found = estimate(curves, utterances=1_000_000)
        self.truth: dict[tuple[Any, ...], float] = {}
        for point, each in zip(owners, found, strict=True):
            self.truth[point] = each.mean
        self.best = max(self.truth.values())
        # The validation part is one draw of utterances: easier than others, or harder, for all.
        self.luck = statistics.mean(
            line["rows"][-1][1] - line["unseen"] for lines in self.lines.values() for line in lines
        )

    def nearest(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """Return the point of the table that is nearest to one of the space."""
        point = tuple(values[name] for name in self._fields)
        return point if point in self.lines else self._nearest(point)

    @cache  # noqa: B019  # there is one table a process
    def _nearest(self, point: tuple[Any, ...]) -> tuple[Any, ...]:
        every = [dict(zip(self._fields, each, strict=True)) for each in (*self.points, point)]
        where = torch.tensor(places(every))
        return self.points[int((where[:-1] - where[-1]).square().sum(1).argmin())]


def replay(table: Table, strategy: Strategy, seed: int) -> Answer:
    """Run one search on the table."""
    draw = random.Random(derive_seed(seed, strategy.name))  # noqa: S311  # which seed's line
    steps = next(iter(table.lines.values()))[0]["rows"][-1][0]
    study = optuna.create_study(direction="maximize", pruner=_pruner(strategy.pruner, steps))
    presets = () if strategy.sampler.startswith("plain") else homework_points(HOMEWORK)
    used, seconds, tried = 0, 0.0, []
    lines: list[tuple[tuple[Any, ...], dict[str, Any], int]] = []  # point, line, last step
    for number in range(TRIALS):
        study.sampler = _sampler(strategy.sampler, study.sampler, seed, number)
        if number < len(presets):
            preset = presets[number]
            study.enqueue_trial(preset.values, user_attrs={PRESET: preset.name})
        trial = study.ask()
        config = HOMEWORK.sample(trial, HOMEWORK_BASELINE)
        values = {name: getattr(config, name) for name in HOMEWORK.definition()}
        tried.append(tuple(values.values()))
        point = table.nearest(values)
        line = draw.choice(table.lines[point])
        report = listen(trial)
        stopped, last = False, 0
        for step, accuracy in _seen(line, steps):
            last = step
            if report(step, {OBJECTIVE: accuracy}) and step < steps:
                stopped = True
                break
        used += last
        seconds += line["seconds"] * last / steps
        lines.append((point, line, last))
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, max(value for _, value in _seen(line, steps)))
    complete = [each for each in lines if each[2] == steps]
    point, shown, covered = _answer(strategy, lines, complete, steps, table.luck)
    truth = table.truth[point]
    return Answer(
        used / steps,
        seconds,
        table.best - truth,
        shown - truth - table.luck,
        *covered,
        TRIALS - len(set(tried)),
    )


def _answer(
    strategy: Strategy,
    lines: list[tuple[tuple[Any, ...], dict[str, Any], int]],
    complete: list[tuple[tuple[Any, ...], dict[str, Any], int]],
    steps: int,
    luck: float,
) -> tuple[tuple[Any, ...], float, tuple[bool | None, bool | None]]:
    """Return the winner, the accuracy that is reported of it, and whether its interval is right."""
    if not strategy.by_model:
        best = max(complete, key=lambda each: max(value for _, value in _seen(each[1], steps)))
        return best[0], max(value for _, value in _seen(best[1], steps)), (None, None)
    fields = list(HOMEWORK.definition())
    where = places([dict(zip(fields, point, strict=True)) for point, _, _ in lines])
    curves = [
        Curve(place, tuple((s / steps, value) for s, value in _seen(line, steps) if s <= last))
        for place, (_, line, last) in zip(where, lines, strict=True)
    ]
    hits = [tuple(hits_of(line["hits"])) for _, line, _ in complete]
    found = estimate(curves, len(hits[0]), agreement(hits))
    ended = [(each, lines[i]) for i, each in enumerate(found) if lines[i][2] == steps]
    winner, (point, line, _) = max(ended, key=lambda pair: pair[0].mean)
    low, high = winner.interval()
    true = line["unseen"]
    return point, winner.mean, (low <= true <= high, low <= true + luck <= high)


def _seen(line: dict[str, Any], steps: int) -> list[tuple[int, float]]:
    """Return the evaluations that a search would make."""
    every = steps // EVALUATIONS
    return [(step, value) for step, value, _ in line["rows"] if step % every == 0]


def _sampler(
    name: str, last: optuna.samplers.BaseSampler, seed: int, number: int
) -> optuna.samplers.BaseSampler:
    if not name.startswith("plain"):
        return make_sampler(name, HOMEWORK, derive_seed(seed, number, "sampler"))
    if number:
        return last
    return TPESampler(seed=seed) if name == "plain tpe" else RandomSampler(seed=seed)


def _pruner(name: str, steps: int) -> optuna.pruners.BasePruner:
    if name == "plain median":
        return MedianPruner()
    return NopPruner() if name == "none" else PRUNERS[name](steps)


def _work(task: tuple[Path, Strategy, int]) -> Answer:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    return replay(_table(task[0]), task[1], task[2])


@cache
def _table(path: Path) -> Table:
    return Table(path)


def summarise(answers: list[Answer]) -> dict[str, float]:
    """Return means over replays, each regret with its standard error."""
    regrets = [answer.regret for answer in answers]
    error = statistics.stdev(regrets) / len(regrets) ** 0.5
    known = [answer.covered for answer in answers if answer.covered is not None]
    lucky = [a.covered_but_for_luck for a in answers if a.covered_but_for_luck is not None]
    return {
        "steps": statistics.mean(answer.steps for answer in answers),
        "seconds": statistics.mean(answer.seconds for answer in answers),
        "regret": statistics.mean(regrets),
        "regret's standard error": error,
        "within .02": statistics.mean(regret <= 0.02 for regret in regrets),
        "flattery": statistics.mean(answer.flattery for answer in answers),
        "covered": statistics.mean(known) if known else float("nan"),
        "covered but for luck": statistics.mean(lucky) if lucky else float("nan"),
        "repeats": statistics.mean(answer.repeats for answer in answers),
    }


def main() -> None:
    """Replay all strategies, and print a line for each."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("table", type=Path)
    flags.add_argument("--replays", type=int, default=200)
    flags.add_argument("--jobs", type=int, default=2)
    flags.add_argument("--only", nargs="*", help="words of the strategies' names")
    flags.add_argument("--out", type=Path)
    arguments = flags.parse_args()
    results = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for strategy in STRATEGIES:
            if arguments.only and not any(word in strategy.name for word in arguments.only):
                continue
            tasks = [(arguments.table, strategy, seed) for seed in range(arguments.replays)]
            results[strategy.name] = summarise(list(pool.map(_work, tasks, chunksize=5)))
            words = "  ".join(f"{key} {value:.3f}" for key, value in results[strategy.name].items())
            print(f"{strategy.name:<45} {words}", flush=True)
    if arguments.out:
        table = Table(arguments.table)
        about = {
            "replays": arguments.replays,
            "points": len(table.points),
            "trainings": sum(map(len, table.lines.values())),
            "best": table.best,
            "validation part's luck": table.luck,
            "strategies": [asdict(each) for each in STRATEGIES],
        }
        arguments.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
