"""One sitting of a search on this machine: say what the missing trials will cost, run them, and say
what ended it.
"""

import textwrap

from experiments.context import move_to_device
from experiments.engines.engine import Engine
from experiments.engines.progress import Forecast, Pace, Progress
from experiments.proposals.pruners import EARLIEST
from experiments.study.search import StudyWorker
from experiments.study.settings import SearchSettings
from experiments.study.stopping import Limit
from speaker.common.signals import uninterrupted
from speaker.config import TrialConfig
from speaker.training import lookahead

WIDTH = 79  # of a line of words, in characters


def run_search(worker: StudyWorker, engine: Engine) -> None:
    """Say what the missing trials will cost, and run them."""
    with worker.closing():
        missing, forecast = worker.missing(), Forecast(0.0)
        if missing > 0:
            forecast = look_ahead(worker, missing, engine)
        run_trials(worker, engine, max(1, min(engine.jobs, missing)), forecast)


def look_ahead(worker: StudyWorker, missing: int, engine: Engine) -> Forecast:
    """Move the data to their device, and say and return what the missing trials will cost there."""
    settings, known, jobs = worker.spec.settings, first_points(worker), engine.jobs
    points, first = settings.space.points(settings.base), [*known.values()][:missing]
    ends = points[0], points[-1]
    context, costs = move_to_device(worker.spec.context, ends, engine.jobs_here)
    with uninterrupted():
        worker.use(context)
    plan = [
        describe_task(settings, context.provenance["device"]),
        lookahead.describe(points, costs, missing, context.compute, jobs, first),
    ]
    if first and not settings.preset:
        least = 1.0 if settings.prune_presets else EARLIEST[settings.pruner]
        shares = lookahead.describe_first(points, costs, missing, first, least)
        whole = " and are trained whole" * (least < 1)
        plan.append(f"The homework's points come first{whole}: {shares}")
    print("\n".join(textwrap.fill(line, WIDTH) for line in plan), flush=True)
    at_once = lookahead.at_once(context.compute, jobs)
    seconds = lookahead.forecast_trials(points, costs, missing, first) / at_once
    each = {number: lookahead.forecast([point], costs) / at_once for number, point in known.items()}
    return Forecast(seconds, each)


def describe_task(settings: SearchSettings, device: str) -> str:
    """Return how many trials and steps are asked for, and what ends the search before them."""
    steps, trials = settings.base.steps, settings.trials
    most = "at most " * settings.is_race
    limits = {
        "seconds": settings.timeout,
        "steps": settings.budget,
        "trials without a better answer": settings.patience,
    }
    task = f"Study {settings.name}: {most}{trials} trials of {steps:,} steps on {device}, "
    task += f"{trials * steps:,} steps in all."
    if ends := [f"{limit:,.12g} {unit}" for unit, limit in limits.items() if limit]:
        task += f" It ends before that after {' or '.join(ends)}."
    return task


def first_points(worker: StudyWorker) -> dict[int, TrialConfig]:
    """Return the points that the study begins with and that are still to be trained, by number."""
    settings = worker.spec.settings
    ended = {trial.number for trial in worker.finished()}
    return {
        number: settings.base.replace(**preset.values)
        for number, preset in enumerate(settings.presets)
        if number not in ended
    }


def run_trials(worker: StudyWorker, engine: Engine, at_once: int, forecast: Forecast) -> None:
    """Run the missing trials, which are to take so long."""
    settings, done, planned = worker.spec.settings, worker.finished(), worker.planned()
    pace = Pace(
        planned - len(done),
        at_once,
        len(settings.presets),
        forecast,
        settings.timeout,
        None if settings.budget is None else settings.budget - worker.steps(),
    )
    with (
        uninterrupted(),
        Progress(worker.shared, planned, done, at_once, pace) as progress,
    ):
        engine.run(worker, at_once, progress)


def describe_end(settings: SearchSettings, limit: Limit, finished: int) -> str:
    """Return in a line what ended a search of so many finished trials, and how to go on."""
    count = f"{finished} of {settings.trials} trials"
    if settings.preset and limit == Limit.TRIALS:
        return f"All points are trained: {count}."
    more = "the same command" if limit == Limit.TIMEOUT else f"a larger {limit}"
    return f"Ended by {limit} after {count}; {more} goes on."
