"""Train the best points of a study again on fresh seeds: `python -m experiments confirm`, and the
end of `search.py --confirm`.
"""

from dataclasses import dataclass

from experiments.analysis.confirmation import confirm, describe_confirmation
from experiments.analysis.leaderboard import ranked
from experiments.context import TrainingContext
from experiments.engines.engine import Engine
from experiments.engines.session import describe_end, run_search
from experiments.outages import HOUR_S, Patience
from experiments.proposals.finalists import digest_of, finalists, space_of
from experiments.study.search import WorkerSpec
from experiments.study.settings import SearchSettings
from experiments.study.stopping import Limit
from experiments.study.trial import STORE_FAILURES
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError, describe_differences
from speaker.common.seeding import derive_seed
from speaker.config import TrialConfig


@dataclass(frozen=True)
class Machine:
    """What the trainings run on, and where their study is kept."""

    context: TrainingContext
    storage_url: str
    engine: Engine
    store_patience: float = HOUR_S  # seconds that a store or disk may fail
    was_open: bool = False  # whether the stores were, and so are waited for at the start, too


def confirm_best(store: TrackingStore, study: str, top: int, seeds: int, machine: Machine) -> None:
    """Race the best `top` points of a study on at most `seeds` fresh seeds, and print who won.

    The race is a study of its own, whose run hangs below the first one's: it resumes like any
    other. Other points, as after more trials, are another race. Raises UserError for a study
    without a complete trial, and for one of another corpus or protocol.
    """
    patience = Patience(machine.store_patience if machine.was_open else 0.0, STORE_FAILURES)
    settings, count = patience.insist(lambda: _plan(store, study, top, seeds, machine.context))
    spec = WorkerSpec(
        settings,
        machine.context,
        machine.storage_url,
        store.uri,
        store_patience=machine.store_patience,
    )
    worker = spec.open_patiently() if machine.was_open else spec.open()
    print(f"The best {count} points of {study} again, on fresh seeds:", flush=True)
    run_search(worker, machine.engine)
    if (limit := worker.ended_by()) != Limit.TRIALS:
        print(describe_end(settings, limit, len(worker.finished())))
    if found := worker.patience.insist(lambda: confirm(ranked(store, settings.name))):
        print(f"\n{describe_confirmation(found)}\n")


def _plan(
    store: TrackingStore, study: str, top: int, seeds: int, context: TrainingContext
) -> tuple[SearchSettings, int]:
    """Return the race of a study's best points, and how many these are: see confirm_best."""
    points = _best_points(store, study, top)
    parent = store.study_runs(study)[0]
    there = {name: parent.data.tags.get(name, "") for name in context.decisive_tags()}
    if changes := describe_differences(there, context.decisive_tags()):
        raise UserError(
            f"a confirmation must be of study {study!r}'s own data, but {changes}; check --data "
            "and --precision"
        )
    space = space_of(points)
    presets = finalists(space, points, seeds)
    settings = SearchSettings(
        name=f"{study}-confirm-{digest_of(points)}",
        space=space,
        base=points[0],
        seed=derive_seed(int(parent.data.params["seed"]), "confirm"),
        sampler="random",
        pruner="none",
        trials=len(presets),
        timeout=None,
        presets=presets,
        preset=f"the best of {study}",
        is_race=True,
        confirms=study,
        above=parent.info.run_id,
    )
    return settings, len(points)


def _best_points(store: TrackingStore, study: str, top: int) -> list[TrialConfig]:
    """Return the best points of a study's complete trials, each once, without a seed."""
    defaults = TrialConfig().to_dict()
    points: list[TrialConfig] = []
    for row in ranked(store, study):
        if row.state == "complete":
            point = TrialConfig.from_dict({**defaults, **row.values, "seed": 0})
            points += [point] * (point not in points)
    if not points:
        raise UserError(
            f"only complete trials can be confirmed, and study {study!r} has none; run search.py "
            "on it first"
        )
    return points[:top]
