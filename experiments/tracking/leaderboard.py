"""Rank the runs of a study and lay them out as a table."""

from dataclasses import dataclass

from mlflow.entities import Run

from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.training.metrics import format_accuracy


@dataclass(frozen=True)
class Row:
    """One trial's run, as far as a reader compares it.

    Accuracies are in [0, 1]; None when it never got a score.
    """

    run_id: str
    trial: str
    point: str
    state: str
    preset: str
    whole: float | None
    crops: float | None
    parameters: int
    seconds: float


def ranked(store: TrackingStore, study: str) -> list[Row]:
    """Return a study's ended runs: the complete ones best first, by accuracy on whole utterances,
    then the others.

    A study has one protocol, so its accuracies may be ranked together. Raises UserError for an
    unknown study.
    """
    if not store.study_runs(study):
        raise UserError(
            f"there is no study {study!r} in {store.shown}; run search.py --study {study} first"
        )
    rows = [_row(run) for run in store.trial_runs(study)]
    ended = [row for row in rows if row.state in ("complete", "pruned", "failed")]
    return sorted(
        ended, key=lambda row: (row.state != "complete", -(row.whole or 0.0), int(row.trial))
    )


def table(rows: list[Row], best: int) -> str:
    """Return the best rows and the homework's points as text, with the rank of each."""
    lines = [
        f"{'rank':>4}  {'trial':>5}  {'point':<22} {'whole':>6} {'crops':>6} {'parameters':>10} "
        f"{'seconds':>8}"
    ]
    for rank, row in enumerate(rows, start=1):
        if rank <= best or row.preset:
            note = " ".join(
                word for word in (row.preset, row.state if row.state != "complete" else "") if word
            )
            lines.append(
                f"{rank:>4}  {'#' + row.trial:>5}  {row.point:<22} {format_accuracy(row.whole):>6} "
                f"{format_accuracy(row.crops):>6} "
                f"{row.parameters:>10,} {row.seconds:>8.1f}  {note}".rstrip()
            )
    return "\n".join(lines)


def _row(run: Run) -> Row:
    tags, metrics = run.data.tags, run.data.metrics
    return Row(
        run_id=run.info.run_id,
        trial=tags.get(names.TRIAL, "0"),
        point=tags.get(names.POINT, ""),
        state=tags.get(names.STATE, ""),
        preset=tags.get(names.PRESET, ""),
        whole=metrics.get(names.BEST_WHOLE),
        crops=metrics.get(names.BEST_CROPS),
        parameters=int(metrics.get(names.PARAMETERS, 0)),
        seconds=metrics.get(names.SECONDS, 0.0),
    )
