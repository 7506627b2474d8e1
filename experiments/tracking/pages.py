"""The pages of MLflow's UI where studies are looked at: a view of a study's trials, the best first,
and the links to it.

A page's address holds its filter and order, but not its columns. These are in a view that is saved
as a tag of the experiment, in a format of MLflow's own: where a release changes that, the address
alone still gives the right order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import mlflow
from mlflow.entities import Run, ViewType

from experiments.tracking import names
from experiments.tracking.descriptions import BOARD
from experiments.tracking.store import TrackingStore
from speaker.config import TrialConfig

VIEW = "mlflow.sharedViewState."  # and the view's name: a tag of the experiment
FIELDS = ("d_model", "nhead", "num_layers", "activation")
FIRST, SECOND = (names.BEST_WHOLE, names.BEST_CROPS), (names.SECONDS, names.PARAMETERS)
NAME, WIDTH = "attributes.`Run Name`", 90  # of a column, in pixels
WIDTHS = {NAME: 230, names.SECONDS: 115, names.PARAMETERS: 130}
INTRODUCTION = "Speaker classifiers: each study is a run, and its trials are the runs below it."
MAX_LISTED = 50  # studies in the experiment's description


@dataclass(frozen=True)
class Leaderboard:
    """Where a study's trials are shown, the best first; both start at the server's address."""

    study: str
    saved: str  # with the columns that matter
    plain: str  # needs no saved view


def save_leaderboards(store: TrackingStore, only: str | None = None) -> list[Leaderboard]:
    """Save a view of the trials of each study, or of `only` one, describe the experiment by links
    to all there are, and return these: the last study first, confirmations after the others.

    What stands there already is not written again; a description that somebody wrote stays.
    """
    tags = dict(store.client.get_experiment(store.experiment_id).tags)
    parents = store.runs(f"tags.{names.KIND} = '{names.KIND_STUDY}'")[::-1]
    parents.sort(key=lambda run: names.CONFIRMS in run.data.tags)
    studies = {run.data.tags[names.STUDY]: run for run in parents[:MAX_LISTED]}
    boards = []
    for study, run in studies.items():
        if only in (None, study):
            boards.append(_save(store, study, run, tags))
    written = tags.get(names.DESCRIPTION, "")
    text = describe_experiment(store, [study for study in studies if VIEW + study in tags])
    if text != written and (not written or written.startswith(INTRODUCTION)):
        store.client.set_experiment_tag(store.experiment_id, names.DESCRIPTION, text)
    return boards


def describe_search(store: TrackingStore, run_id: str, text: str) -> None:
    """Describe the run of a study by a text and a link to its trials."""
    study = store.client.get_run(run_id).data.tags[names.STUDY]
    save_leaderboards(store, study)
    store.describe_study(run_id, text, f"[{BOARD}]({_saved(store, study)})")


def served_at(store: TrackingStore, study: str) -> str:
    """Return the address of a study's trials, where the store is a server with a UI; else none."""
    is_server = store.uri.startswith("http")
    return f"{store.shown.rstrip('/')}/{_saved(store, study)}" if is_server else ""


def all_trials(store: TrackingStore) -> str:
    """Return the address of the trials of all studies and of none, the best first."""
    return _page(store, _facets(f"tags.{names.KIND} = '{names.KIND_TRIAL}'", names.BEST_WHOLE))


def describe_experiment(store: TrackingStore, studies: list[str]) -> str:
    """Return what the UI says above all runs, in Markdown."""
    lines = [f"- [{study}]({_saved(store, study)})" for study in studies]
    return "\n".join(
        [
            f"{INTRODUCTION} `{names.BEST_WHOLE}` is a trial's accuracy on whole utterances of the "
            "validation part. Accuracies of different corpora, splits or budgets do not compare.",
            *(["", "The trials of a study, the best first:", "", *lines] if lines else []),
        ]
    )


def view(study: str, fields: list[str], written: Mapping[str, str], created: int) -> str:
    """Return the view of a study's trials as MLflow 3.17 saves it: `written` says which names its
    metrics have there, `created` is in milliseconds.
    """
    first, second = (
        {f"metrics.`{written.get(name, name)}`": WIDTHS.get(name, WIDTH) for name in which}
        for which in (FIRST, SECOND)
    )
    between = dict.fromkeys(
        [*(f"params.`{name}`" for name in fields), f"tags.`{names.STATE}`"], WIDTH
    )
    columns = {**first, **between, **second}
    state = {
        **_facets(_of(study), written.get(names.BEST_WHOLE, names.BEST_WHOLE)),
        "selectedColumns": list(columns),
        "columnOrder": [NAME, *columns],
        "columnWidths": {NAME: WIDTHS[NAME], **columns},
    }
    envelope = {
        "name": f"Best trials of {study}",
        "createdAt": created,
        "updatedAt": created,
        "state": json.dumps(state),
    }
    return json.dumps(envelope)


def _save(store: TrackingStore, study: str, parent: Run, tags: dict[str, str]) -> Leaderboard:
    """Save the view of a study's trials among the experiment's tags, unless it is there."""
    written = _written(store, study)
    varied = [name for name in TrialConfig().to_dict() if f"space.{name}" in parent.data.params]
    text = view(study, varied or list(FIELDS), written, parent.info.start_time)
    if tags.get(VIEW + study) != text:
        store.client.set_experiment_tag(store.experiment_id, VIEW + study, text)
        tags[VIEW + study] = text
    order = _facets(_of(study), written.get(names.BEST_WHOLE, names.BEST_WHOLE))
    return Leaderboard(study, _saved(store, study), _page(store, order))


def _saved(store: TrackingStore, study: str) -> str:
    return _page(store, {"viewStateShareKey": study})


def _written(store: TrackingStore, study: str) -> dict[str, str]:
    """Return which names a study's metrics have in the store, where these are not the present ones:
    those of an older version, if all of its trials are.
    """
    if _has(store, study, names.BEST_WHOLE):
        return {}
    return names.FORMER if _has(store, study, names.FORMER[names.BEST_WHOLE]) else {}


def _has(store: TrackingStore, study: str, metric: str) -> bool:
    condition = f"{_of(study)} and metrics.`{metric}` >= 0"
    return bool(
        mlflow.MlflowClient(store.uri).search_runs(
            [store.experiment_id], condition, ViewType.ACTIVE_ONLY, 1
        )
    )


def _of(study: str) -> str:
    return f"tags.{names.KIND} = '{names.KIND_TRIAL}' and tags.{names.STUDY} = '{study}'"


def _facets(condition: str, metric: str) -> dict[str, object]:
    return {"searchFilter": condition, "orderByKey": f"metrics.`{metric}`", "orderByAsc": False}


def _page(store: TrackingStore, query: Mapping[str, object]) -> str:
    words = {name: str(value).lower() if isinstance(value, bool) else value
             for name, value in query.items()}  # fmt: skip
    text = urlencode({**words, "workflowType": "machine_learning"}, quote_via=quote)
    return f"#/experiments/{store.experiment_id}/runs?{text}"
