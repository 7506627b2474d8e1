"""What a search has left: both stores, all files, line by line, so that two searches compare.

Times, speeds, ids and places are left out or made alike; everything else is in it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from mlflow.entities import Run, ViewType
from optuna.trial import FrozenTrial

from experiments.proposals.attributes import RUN_ID
from experiments.study.contract import IDENTITY, PARENT
from experiments.study.storage import open_storage
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from experiments.upkeep.doctor.checks import examine
from experiments.upkeep.doctor.survey import Place
from experiments.urls import masked
from speaker.training.metrics import CROPS_PER_S, STEPS_PER_S, UTTERANCES_PER_S

Account = dict[str, str]
TIMED = (STEPS_PER_S, UTTERANCES_PER_S, CROPS_PER_S, names.SECONDS)  # their values are left out
# Of the program, which may be at work on while a long series of searches runs; and that a training
# was killed before its first checkpoint.
INCIDENTAL = ("mlflow.source.", "mlflow.user", "git.dirty", names.STARTED_OVER)
ALIKE = (
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", "WHEN"),
    (r"[\d,.]+ s(?= of training|\. )", "SECONDS"),
    (r"(?<=edAt\": )\d{13}", "WHEN"),
)
# What hangs on which trials had ended by then, where several run at once.
OF_OTHERS = (r"the homework's baseline point had \S+ under the same budget; ", "")


@dataclass(frozen=True)
class Home:
    """Where a search was run, and by how many at once."""

    folder: Path
    storage: str  # the URL of its study
    study: str
    is_alone: bool = True  # whether one trial ran at a time: then all is in one order

    @property
    def state(self) -> Path:
        """The folder of all that it keeps."""
        return self.folder / "mlruns"

    def alike(self, text: object) -> str:
        """Return a text without what differs from one search to the next."""
        found = str(text).replace(masked(self.storage), "STORAGE")
        found = found.replace(str(self.folder), "HOME")
        for pattern, word in ALIKE if self.is_alone else (*ALIKE, OF_OTHERS):
            found = re.sub(pattern, word, found)
        return found


def account_of(home: Home) -> Account:
    """Return all that a search has left, by what it is."""
    store = TrackingStore(f"sqlite:///{home.state}/mlflow.db")
    storage = open_storage(home.storage)
    study = optuna.load_study(study_name=home.study, storage=storage)
    trials = study.get_trials()
    known = {
        name: value for name, value in study.user_attrs.items() if name not in (IDENTITY, PARENT)
    }
    lines = [
        ("study", known),
        ("study's own", storage.get_study_system_attrs(study._study_id)),
        ("trials", len(trials)),
    ]
    for trial in trials:
        lines += [(f"trial {trial.number} {what}", words) for what, words in _of_trial(trial)]
    storage.engine.dispose()
    seen: Counter[str] = Counter()
    for run in store.runs("", ViewType.ALL):
        who = _name_of(run)
        seen[who] += 1
        who += f" (again {seen[who]})" * (seen[who] > 1)
        lines += [(f"{who} {what}", words) for what, words in _of_run(store, run, home)]
    found = examine(Place(store, home.storage, home.state))
    lines += [(f"files, says the doctor: {each.kind} {each.where}", each.words) for each in found]
    experiment = store.client.get_experiment(store.experiment_id)
    lines += [(f"experiment {name}", text) for name, text in experiment.tags.items()]
    store.client._tracking_client.store.engine.dispose()
    lines += [(f"files {path}", count) for path, count in _files(home).items()]
    return {what: home.alike(words) for what, words in lines}


def differences(account: Account, undisturbed: Account) -> list[str]:
    """Return where two accounts differ, a line each."""
    return [
        f"{what}: {account.get(what, 'nothing')[:300]} instead of "
        f"{undisturbed.get(what, 'nothing')[:300]}"
        for what in sorted(account.keys() | undisturbed.keys())
        if account.get(what) != undisturbed.get(what)
    ]


def _of_trial(trial: FrozenTrial) -> Iterator[tuple[str, object]]:
    yield "state", trial.state.name
    yield "value", trial.value
    yield "params", sorted(trial.params.items())
    yield "reports", sorted(trial.intermediate_values.items())
    known = {name: value for name, value in trial.user_attrs.items() if name != RUN_ID}
    yield "attributes", sorted(known.items())
    yield "own attributes", sorted(trial.system_attrs.items())
    yield "times", [time is not None for time in (trial.datetime_start, trial.datetime_complete)]


def _name_of(run: Run) -> str:
    number = run.data.tags.get(names.TRIAL)
    return f"run of trial {number}" if number else f"run of {run.data.tags.get(names.KIND)}"


def _of_run(store: TrackingStore, run: Run, home: Home) -> Iterator[tuple[str, object]]:
    yield "name", run.info.run_name
    yield "status", (run.info.status, run.info.lifecycle_stage, run.info.end_time is not None)
    yield "inputs", [each.dataset.digest for each in run.inputs.dataset_inputs]
    yield "params", sorted(run.data.params.items())
    for name, text in run.data.tags.items():
        if not name.startswith(INCIDENTAL):
            yield f"tag {name}", text
    for key in run.data.metrics:
        rows = store.client.get_metric_history(run.info.run_id, key)
        steps = [(row.step, None if key in TIMED else row.value) for row in rows]
        # The best so far hangs on the order in which trials ended; the last of it does not.
        if run.data.tags.get(names.KIND) == names.KIND_STUDY and not home.is_alone:
            steps = [max(steps)] * (len(dict(steps)) == len(steps))
        yield f"metric {key}", sorted(steps)
    folder = home.state / "artifacts" / run.info.run_id
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != names.REPORT:  # it has times and a place for each dot
            yield f"file {path.name}", hashlib.sha256(path.read_bytes()).hexdigest()


def _files(home: Home) -> Counter[str]:
    """Return how many files and empty folders there are of each name."""
    found = (path for path in home.state.rglob("*") if path.is_file() or not any(path.iterdir()))
    names_of = (str(path.relative_to(home.state)) for path in found)
    # Where trials are short, none may have kept one.
    return Counter(home.alike(name) for name in names_of if name != "checkpoints")
