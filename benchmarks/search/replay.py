"""Replay searches on a table of trained points: steps, regret, and how honest the answer is.

`python -m benchmarks.search.replay TABLE --replays 200 --out FILE` runs whole studies in memory,
by the product's own samplers, pruners, presets, estimates and races; a trial's training is looked
up. A point that the table lacks stands for the nearest one that it has. Each replay draws a
validation part of its own from the table's pool, with replacement: what a model is worth in truth
is its accuracy on the whole pool, and a point's worth is that of its models on average over seeds,
by a Gaussian process of all points of the table. The outside anchor, Syne Tune, is not installed
with the project: `pip install --no-deps syne-tune==0.16.0 dill sortedcontainers statsmodels patsy`.
"""

import argparse
import datetime
import json
import random
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import torch
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.search.table import read_table
from experiments.analysis.leaderboard import AGREEING, agreement
from experiments.proposals.attributes import PRESET
from experiments.proposals.curves import Curve, Estimate, estimate, places_of
from experiments.proposals.presets import homework_points
from experiments.proposals.pruners import PRUNERS
from experiments.proposals.race import still_racing, winner
from experiments.proposals.samplers import make_sampler
from experiments.proposals.space import HOMEWORK
from experiments.study.trial import listen
from speaker.common.seeding import derive_seed
from speaker.config import HOMEWORK_BASELINE
from speaker.training.metrics import OBJECTIVE, hits_of

TRIALS = 50
SEARCHED = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the budget: where search.py evaluates
MARKS = "os^vD*P"
Point = tuple[Any, ...]

OTHER_PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "plain median": lambda _steps: MedianPruner(),
    "halving by 4": lambda steps: SuccessiveHalvingPruner(max(1, steps // 5), 4, 0),
}


@dataclass(frozen=True)
class Strategy:
    """How a search proposes, stops and answers."""

    name: str
    sampler: str  # of SAMPLERS; or Optuna's own, "plain tpe", or all of "syne-tune BOHB"
    pruner: str  # of PRUNERS or OTHER_PRUNERS
    by_model: bool  # whether the answer is the model's, or the best shown number
    finalists: int = 0  # that race on fresh seeds at the end
    seeds: int = 0  # of each, at most
    trials: int = TRIALS


STRATEGIES = (
    Strategy("random, none stopped", "plain random", "none", False),
    Strategy("Optuna's defaults, none stopped", "plain tpe", "none", False),
    Strategy("Optuna's defaults + median", "plain tpe", "plain median", False),
    Strategy("Syne Tune's BOHB", "syne-tune BOHB", "", False),
    Strategy("Syne Tune's ASHA", "syne-tune ASHA", "", False),
    Strategy("before: TPE + median", "plain tpe", "median", False),
    Strategy("TPE + halving", "plain tpe", "halving", False),
    Strategy("TPE + halving, by the model", "tpe", "halving", True),
    Strategy("TPE + halving by 4, by the model", "tpe", "halving by 4", True),
    Strategy("random + halving, by the model", "random", "halving", True),
    Strategy("GP + halving, by the model", "gp", "halving", True),
    Strategy("TPE + halving, then a race of 4", "tpe", "halving", True, 4, 5),
    Strategy("TPE + halving by 4, then a race of 4", "tpe", "halving by 4", True, 4, 5),
)


@dataclass(frozen=True)
class Answer:
    """How one replay ended."""

    steps: float  # in whole trainings
    seconds: float
    regret: float  # true accuracy lost against the best point
    flattery: float  # reported less true accuracy
    covered: bool | None  # whether the interval holds the true value
    repeats: int
    fresh: float  # of the race's trainings, the share that was looked up


@dataclass(frozen=True)
class Training:
    """A line of the table, as a validation part drawn from the pool sees it."""

    point: Point
    seed: int
    seconds: float
    values: tuple[float, ...]  # at each of SEARCHED
    worths: tuple[float, ...]  # the same on the whole pool
    hits: tuple[tuple[bool, ...], ...]

    @property
    def best(self) -> int:
        """Which evaluation's weights are kept: the first of the best."""
        return self.values.index(max(self.values))


class Table:
    """Trained points, and their worth in truth."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[Point, list[dict[str, Any]]] = {}
        for line in read_table(path):
            found = {step: np.array(hits_of(text)) for step, text in line["hits"]}
            whole = max(found)
            line["hits"] = np.stack([found[round(each * whole)] for each in SEARCHED])
            self.lines.setdefault(tuple(line["point"].values()), []).append(line)
            self.steps, self.valid = whole, line["valid"]
        self.points = list(self.lines)
        self.fields = list(HOMEWORK.definition())
        self.truth = self._smooth()
        self.best = max(self.truth.values())

    def _smooth(self) -> dict[Point, float]:
        """Return what each point is worth on average over seeds: these differ by 0.04, so that the
        best of single trainings would owe much to luck.
        """
        places = dict(zip(self.points, self.places(self.points), strict=True))
        where = [places[point] for point in self.points for _ in self.lines[point]]
        found = [line["hits"][-1].mean() for point in self.points for line in self.lines[point]]
        kernel = ConstantKernel() * Matern(np.ones(len(where[0])), nu=2.5) + WhiteKernel()
        model = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            # A field that does not matter has a length at its bound.
            model.fit(where, found)
        return dict(zip(self.points, model.predict(list(places.values())).tolist(), strict=True))

    def places(self, points: list[Point]) -> list[tuple[float, ...]]:
        """Return where points lie in the space."""
        return places_of([dict(zip(self.fields, point, strict=True)) for point in points])

    def nearest(self, values: dict[str, Any]) -> Point:
        """Return the point of the table that is nearest to one of the space."""
        point = tuple(values[name] for name in self.fields)
        return point if point in self.lines else self._nearest(point)

    @cache  # noqa: B019  # there is one table a process
    def _nearest(self, point: Point) -> Point:
        where = torch.tensor(self.places([*self.points, point]))
        return self.points[int((where[:-1] - where[-1]).square().sum(1).argmin())]


class Replay:
    """One search on the table, with a validation part of its own."""

    def __init__(self, table: Table, strategy: Strategy, seed: int) -> None:
        self.table, self.strategy, self.seed = table, strategy, seed
        # The same part and the same seeds' lines for all strategies: differences are paired.
        self.draw = random.Random(derive_seed(seed, "replay"))  # noqa: S311
        pool = next(iter(table.lines.values()))[0]["hits"].shape[1]
        self.part = [self.draw.randrange(pool) for _ in range(table.valid)]
        self.used, self.seconds = 0.0, 0.0
        self.trials: list[tuple[Training, float]] = []  # and the share of the budget it had
        self.race: list[bool] = []  # whether each training was looked up

    def run(self) -> Answer:
        """Search, answer, and hold the answer against the truth."""
        anchor = self.strategy.sampler.startswith("syne-tune")
        points = self._search_by_syne_tune() if anchor else self._search()
        if not self.strategy.by_model:
            training = max(self._complete(), key=lambda each: max(each.values))
            shown, interval = max(training.values), None
        else:
            ranked = self._ranked()
            training, found = ranked[0]
            shown, interval = found.mean, found.interval()
        point, true = training.point, training.worths[training.best]
        if self.strategy.finalists:
            point, shown, interval = self._confirm([each for each, _ in ranked])
            true = self.table.truth[point]
        return Answer(
            self.used,
            self.seconds,
            self.table.best - self.table.truth[point],
            shown - true,
            interval and interval[0] <= true <= interval[1],
            len(points) - len(set(points)),
            statistics.mean(self.race) if self.race else 1.0,
        )

    def _search(self) -> list[Point]:
        """Run the product's search; return the points that it proposed."""
        table, strategy = self.table, self.strategy
        pruners = {**PRUNERS, **OTHER_PRUNERS}
        study = optuna.create_study(
            direction="maximize", pruner=pruners[strategy.pruner](table.steps)
        )
        presets = () if strategy.sampler.startswith("plain") else homework_points(HOMEWORK)
        tried = []
        for number in range(strategy.trials):
            study.sampler = _sampler(strategy.sampler, study.sampler, self.seed, number)
            if number < len(presets):
                about = {PRESET: presets[number].name}
                study.enqueue_trial(presets[number].values, user_attrs=about)
            trial = study.ask()
            config = HOMEWORK.sample(trial, HOMEWORK_BASELINE)
            values = {name: getattr(config, name) for name in HOMEWORK.definition()}
            tried.append(tuple(values.values()))
            training = self._training(self.draw.choice(table.lines[table.nearest(values)]))
            report = listen(trial)
            stopped = False
            for share, value in zip(SEARCHED, training.values, strict=True):
                stopped = report(round(share * table.steps), {OBJECTIVE: value}) and share < 1
                if stopped:
                    break
            self._spend(training, share)
            self.trials.append((training, share))
            if stopped:
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, max(training.values))
        return tried

    def _search_by_syne_tune(self) -> list[Point]:
        """Run another library's, with the same rungs: a fifth and three fifths of the budget."""
        from syne_tune.backend.trial_status import Trial  # type: ignore[import-not-found]
        from syne_tune.config_space import choice, randint  # type: ignore[import-not-found]
        from syne_tune.optimizer import baselines  # type: ignore[import-not-found]

        space = {name: choice(list(values)) for name, values in HOMEWORK.choices.items()}
        space |= {name: randint(low, high) for name, (low, high) in HOMEWORK.integers.items()}
        np.random.seed(self.seed)  # it draws from there
        scheduler = getattr(baselines, self.strategy.sampler.split()[1])(
            space,
            metric="accuracy",
            time_attr="evaluation",
            max_t=len(SEARCHED),
            do_minimize=False,
            random_seed=self.seed,
        )
        tried = []
        for number in range(self.strategy.trials):
            values = scheduler.suggest().config
            tried.append(tuple(values[name] for name in self.table.fields))
            trial = Trial(number, values, datetime.datetime.now(datetime.UTC))
            scheduler.on_trial_add(trial)
            line = self.draw.choice(self.table.lines[self.table.nearest(values)])
            training = self._training(line)
            for evaluation, value in enumerate(training.values, start=1):
                result = {"accuracy": value, "evaluation": evaluation}
                if scheduler.on_trial_result(trial, result) == "STOP":
                    break
            self._spend(training, SEARCHED[evaluation - 1])
            self.trials.append((training, SEARCHED[evaluation - 1]))
        return tried

    def _training(self, line: dict[str, Any]) -> Training:
        part = line["hits"][:, self.part]
        return Training(
            tuple(line["point"].values()),
            line["seed"],
            line["seconds"],
            tuple(part.mean(1).tolist()),
            tuple(line["hits"].mean(1).tolist()),
            tuple(map(tuple, part.tolist())),
        )

    def _spend(self, training: Training, share: float) -> None:
        self.used += share
        self.seconds += training.seconds * share

    def _complete(self) -> list[Training]:
        return [training for training, share in self.trials if share == 1]

    def _ranked(self) -> list[tuple[Training, Estimate]]:
        """Return the complete trainings, the best first, as the leaderboard does."""
        where = self.table.places([training.point for training, _ in self.trials])
        curves = [
            Curve(place, tuple(
                (each, value) for each, value in zip(SEARCHED, training.values, strict=True)
                if each <= share
            ))
            for place, (training, share) in zip(where, self.trials, strict=True)
        ]  # fmt: skip
        best = sorted(self._complete(), key=lambda each: -max(each.values))[:AGREEING]
        hits = [training.hits[training.best] for training in best]
        found = estimate(curves, self.table.valid, agreement(hits))
        ended = [
            (training, each)
            for each, (training, share) in zip(found, self.trials, strict=True)
            if share == 1
        ]
        return sorted(ended, key=lambda pair: -pair[1].mean)

    def _confirm(self, ranked: list[Training]) -> tuple[Point, float, tuple[float, float]]:
        """Race the best points on fresh seeds; return the winner and what is expected of it."""
        finalists = ranked[: self.strategy.finalists]
        values: dict[Any, dict[Any, float]] = {each.point: {} for each in finalists}
        for number in range(self.strategy.seeds):
            racing = still_racing(values)
            if len(racing) == 1 and number > 1:
                break
            for training in finalists:
                if training.point in racing:
                    values[training.point][number] = self._fresh(training, number)
        hits = [training.hits[training.best] for training in ranked[:AGREEING]]
        found = winner(values, self.table.valid, agreement(hits))
        return found.point, found.expected.mean, found.expected.interval()

    def _fresh(self, training: Training, number: int) -> float:
        """Return what a point scores on another seed: looked up, or where the table has no more
        seeds of it, its worth and what a seed of another point is off from that point's.
        """
        lines = self.table.lines[training.point]
        others = [line for line in lines if line["seed"] != training.seed]
        self.race.append(number < len(others))
        if number < len(others):
            other = self._training(others[number])
            self._spend(other, 1)
            return max(other.values)
        self._spend(training, 1)
        repeated = [each for each in self.table.lines.values() if len(each) > 1]
        drawn = self._training(self.draw.choice(self.draw.choice(repeated)))
        truth = self.table.truth
        return truth[training.point] + max(drawn.values) - truth[drawn.point]


def _sampler(name: str, last: BaseSampler, seed: int, number: int) -> BaseSampler:
    if not name.startswith("plain"):
        return make_sampler(name, HOMEWORK, derive_seed(seed, number, "sampler"))
    if number:
        return last
    return TPESampler(seed=seed) if name == "plain tpe" else RandomSampler(seed=seed)


def _work(task: tuple[Path, Strategy, int]) -> Answer:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    return Replay(_table(task[0]), task[1], task[2]).run()


@cache
def _table(path: Path) -> Table:
    return Table(path)


def summarise(answers: list[Answer], standard_error: float) -> dict[str, float]:
    """Return means over replays, each regret with its standard error."""
    regrets = [answer.regret for answer in answers]
    known = [answer.covered for answer in answers if answer.covered is not None]
    return {
        "steps": statistics.mean(answer.steps for answer in answers),
        "seconds": statistics.mean(answer.seconds for answer in answers),
        "regret": statistics.mean(regrets),
        "regret's standard error": statistics.stdev(regrets) / len(regrets) ** 0.5,
        "within a standard error": statistics.mean(each <= standard_error for each in regrets),
        "flattery": statistics.mean(answer.flattery for answer in answers),
        "covered": statistics.mean(known) if known else float("nan"),
        "repeats": statistics.mean(answer.repeats for answer in answers),
        "looked up": statistics.mean(answer.fresh for answer in answers),
    }


def _regret(entry: tuple[str, dict[str, float]]) -> float:
    return entry[1]["regret"]


def draw(results: dict[str, dict[str, float]], error: float, path: Path) -> None:
    """Draw what each strategy loses against what it trains."""
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    axes.axhline(error, color="0.7", linestyle=":")
    axes.text(50, error, "a standard error of the best", va="bottom", ha="right", color="0.4")
    for number, (name, result) in enumerate(sorted(results.items(), key=_regret)):
        half_width = 1.645 * result["regret's standard error"]
        mark, color = MARKS[number % len(MARKS)], f"C{number % 10}"
        place = (result["steps"], result["regret"], half_width)
        axes.errorbar(*place, fmt=mark, color=color, capsize=3, label=name)
    figure.legend(loc="outside right center", fontsize="small", title="from low to high")
    axes.set_xlabel("training, in whole trainings of 50")
    axes.set_ylabel("accuracy lost against the best point")
    axes.set_xlim(0, 55)
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Replay all strategies, and print a line for each."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("table", type=Path)
    flags.add_argument("--replays", type=int, default=200)
    flags.add_argument("--jobs", type=int, default=2)
    flags.add_argument("--only", nargs="*", help="words of the strategies' names")
    flags.add_argument("--out", type=Path)
    arguments = flags.parse_args()
    table = Table(arguments.table)
    error = (table.best * (1 - table.best) / table.valid) ** 0.5
    results = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for strategy in STRATEGIES:
            if arguments.only and not any(word in strategy.name for word in arguments.only):
                continue
            tasks = [(arguments.table, strategy, seed) for seed in range(arguments.replays)]
            results[strategy.name] = summarise(list(pool.map(_work, tasks, chunksize=5)), error)
            words = "  ".join(f"{key} {value:.3f}" for key, value in results[strategy.name].items())
            print(f"{strategy.name:<45} {words}", flush=True)
    if arguments.out:
        about = {
            "replays": arguments.replays,
            "points": len(table.points),
            "trainings": sum(map(len, table.lines.values())),
            "best": table.best,
            "validation part": table.valid,
            "a standard error": error,
            "strategies": [asdict(each) for each in STRATEGIES],
        }
        draw(results, error, arguments.out.with_suffix(".png"))
        arguments.out.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
