"""A study as its page shows it: plain data, read from the tracking store once."""

from dataclasses import dataclass, field

from experiments.analysis import breakdown
from experiments.analysis.breakdown import Confusion, Part
from experiments.analysis.confirmation import Confirmation, latest_confirmation
from experiments.analysis.leaderboard import Row, ranked
from experiments.proposals.presets import EDITED, FOUR_EDITS
from experiments.report.levels import scored
from experiments.tracking import validation
from experiments.tracking.artifacts import read_text
from experiments.tracking.store import TrackingStore
from experiments.tracking.validation import Prediction
from speaker.config import HOMEWORK_BASELINE, PRESETS


@dataclass(frozen=True)
class Study:
    """A study's ended trials as `ranked` orders them, what its run says, and its confirmation."""

    name: str
    rows: list[Row]
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    confirmation: Confirmation | None = None
    run_id: str = ""
    confirmed_by: str = ""  # the name of the confirmation's own study
    predictions: tuple[Prediction, ...] = ()  # the winner's, where its run keeps them

    @property
    def complete(self) -> list[Row]:
        """The trials with a score at the whole budget, the best first."""
        return scored(self.rows)

    @property
    def winner(self) -> Row | None:
        """The best complete trial, if there is one."""
        return self.complete[0] if self.complete else None

    @property
    def baseline(self) -> Row | None:
        """The first complete trial of the homework's first point, if there is one."""
        first, *_ = PRESETS
        same = [
            row
            for row in self.complete
            if row.preset == first
            or (row.preset and _is_baseline(row) and row.preset not in PRESETS)
        ]
        return min(same, key=lambda row: int(row.trial), default=None)

    @property
    def tied(self) -> list[Row]:
        """The complete trials that the validation utterances cannot tell from the winner."""
        return [row for row in self.complete[1:] if row.is_tied]

    @property
    def confusions(self) -> list[Confusion]:
        """Whom the winner took for whom, the most frequent first."""
        kept = self.predictions
        return breakdown.confusions(
            [each.speaker for each in kept], [each.predicted for each in kept]
        )

    @property
    def lengths(self) -> list[Part]:
        """The winner's accuracy on quarters of the utterances, the shortest first."""
        kept = self.predictions
        return breakdown.by_length([each.is_right for each in kept], [each.frames for each in kept])

    @property
    def speakers(self) -> list[Part]:
        """The winner's accuracy by speaker, who was told right least often first."""
        kept = self.predictions
        return breakdown.by_speaker(
            [each.is_right for each in kept], [each.speaker for each in kept]
        )

    @property
    def utterances(self) -> int:
        """How many validation utterances there were; 0 where an older version did not say."""
        return max((len(row.hits) for row in self.rows), default=0)


def read_study(store: TrackingStore, name: str) -> Study:
    """Read a study. Raises UserError for an unknown one."""
    rows = ranked(store, name)
    parent = store.study_runs(name)[0]
    latest = latest_confirmation(store, name)
    best = scored(rows)[:1]
    kept = [read_text(store, store.client.get_run(row.run_id), validation.FILE) for row in best]
    return Study(
        name,
        rows,
        dict(parent.data.tags),
        dict(parent.data.params),
        latest[2] if latest else None,
        parent.info.run_id,
        latest[0] if latest else "",
        tuple(validation.from_csv(kept[0])) if kept else (),
    )


def _is_baseline(row: Row) -> bool:
    """Tell whether a row is the homework's first point, or the corner of the four edits that is."""
    if row.preset == FOUR_EDITS:
        return all(row.values.get(name) == getattr(HOMEWORK_BASELINE, name) for name in EDITED)
    return row.preset == next(iter(PRESETS))
