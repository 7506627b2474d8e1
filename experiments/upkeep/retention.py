"""Which weights of a study are kept: `search.py --keep` and `--disk`.

What is removed leaves a note in its run, written before the files go. A kill between the two is
made good by the next call, and removing once more does no harm.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from mlflow.entities import Run

from experiments.analysis.leaderboard import Row, ranked
from experiments.registry.versions import registering, versions_of
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.weights import remove_weights, size_of_artifacts, was_removed
from speaker.config import TrialConfig


@dataclass(frozen=True)
class Retention:
    """How much of a study's weights is kept; the winner's and those of registered models always."""

    keep: int | None = None  # the best so many trials
    disk: int | None = None  # bytes of the study's artifacts

    def __call__(self, store: TrackingStore, study: str) -> None:
        """Remove the weights that are not to be kept, of trials that have ended."""
        with registering(store):  # so that none is removed that is being registered
            runs = {run.info.run_id: run for run in store.trial_runs(study)}
            rows = [row for row in ranked(store, study) if row.run_id in runs]
            for row in rows:
                if was_removed(runs[row.run_id]):  # a kill may have left the files
                    remove_weights(store, runs[row.run_id])
            used = {version.run_id for version in versions_of(store)}
            for row, why in self._too_many(store, study, rows, runs, used):
                remove_weights(store, runs[row.run_id], why, again(row, runs[row.run_id]))

    def describe(self, store: TrackingStore, study: str) -> str:
        """Return how many weights of a study there are, and how many bytes."""
        runs = store.trial_runs(study)
        kept = [run for run in runs if _has_weights(run)]
        removed = sum(was_removed(run) for run in runs)
        size = sum(size_of_artifacts(store, run) for run in (*store.study_runs(study), *runs))
        line = f"The weights of {len(kept)} trials are kept, {size:,} bytes with all else"
        line += f"; {removed} trials say how to make theirs again." if removed else "."
        if self.disk and size > self.disk:
            line += " That is above --disk: the winner's and registered ones are never removed."
        return line

    def _too_many(
        self,
        store: TrackingStore,
        study: str,
        rows: Sequence[Row],
        runs: dict[str, Run],
        used: set[str],
    ) -> list[tuple[Row, str]]:
        """Return the trials whose weights are too many, and why, the worst first."""
        held = [row for row in rows if _has_weights(runs[row.run_id])]
        best = {row.run_id for row in rows[: self.keep] if row.state == "complete"}
        found = [
            (row, f"it is none of the best {self.keep}, which --keep asks for")
            for row in reversed(held)
            if self.keep and row.run_id not in best | used
        ]
        if self.disk is None:
            return found
        gone = {row.run_id for row, _ in found}
        sizes = {run_id: size_of_artifacts(store, run) for run_id, run in runs.items()}
        weights = {row.run_id: size_of_artifacts(store, runs[row.run_id], True) for row in held}
        total = sum(sizes.values()) - sum(weights[run_id] for run_id in gone)
        total += sum(size_of_artifacts(store, run) for run in store.study_runs(study))
        for row in reversed(held):
            if total <= self.disk:
                break
            if row.run_id not in gone | used and row.run_id != rows[0].run_id:
                total -= weights[row.run_id]
                found.append((row, f"--disk allows {self.disk:,} bytes"))
        return found


def again(row: Row, run: Run) -> str:
    """Return the command that trains a run's point again, to the same weights on a like machine."""
    words = ["python", "train_trial.py"]
    sources = [each.dataset.source for each in run.inputs.dataset_inputs]
    if sources:
        words += ["--data", unquote(urlsplit(json.loads(sources[0])["uri"]).path)]
    words += ["--precision", run.data.tags.get("precision", "auto")]
    for name in TrialConfig().to_dict():
        value, flag = row.values.get(name), f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif value is not None:
            words += [flag, str(value)]
    return shlex.join(words)


def _has_weights(run: Run) -> bool:
    return names.SHA256 in run.data.tags and not was_removed(run)
