"""Some runs side by side: what differs, how they learned, and whether one is better."""

import re
import string
from collections.abc import Sequence

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from experiments.analysis.leaderboard import SURE, Row, in_order, ranks, read_rows, seeds_of
from experiments.analysis.paired import compare_hits
from experiments.analysis.table import Numbered
from experiments.analysis.text_table import Column, text_lines
from experiments.tracking import names
from experiments.tracking.store import TrackingStore
from speaker.common.errors import UserError
from speaker.config import ADDED_LATER, TrialConfig
from speaker.training.metrics import format_accuracy

MAX_RUNS = 8  # that stand beside each other in a line
MAX_LINES = 20  # of curves
MAX_VALUE = 24  # characters of a value
MEASURED_BY = ("corpus.digest", "protocol.whole", "protocol.crops")  # by what accuracies compare
OTHERWISE = "by different protocols"
# Tags of a run that say where its numbers come from, in the order that they are shown.
ORIGIN = (
    "corpus", *MEASURED_BY, "precision", "device", "device.fallbacks", "mlflow.source.git.commit",
    "git.dirty", "version.",
)  # fmt: skip


def find_rows(store: TrackingStore, words: Sequence[str], study: str | None) -> list[Row]:
    """Return the runs called by id, or, where a study is given, by the number of its trial.

    The complete ones come best first if all are of one corpus and protocol; else they stay in their
    order. Raises UserError for what is no run of a trial, one given twice, one alone, and too many.
    """
    if not 2 <= len(words) <= MAX_RUNS:
        raise UserError(
            f"from 2 to {MAX_RUNS} runs stand side by side, but got {len(words)}; for a whole "
            "study give --study NAME alone"
        )
    runs = [_find(store, word, study) for word in words]
    ids = [run.info.run_id for run in runs]
    for place, run_id in enumerate(ids):
        if run_id in ids[:place]:
            raise UserError(f"each run is to be given once, but {run_id} was given twice")
    rows = read_rows(store, runs)
    return rows if why_not_ranked(rows) else in_order(rows)


def _find(store: TrackingStore, word: str, study: str | None) -> Run:
    if study and (number := re.fullmatch(r"#?(\d{1,6})", word)):
        found = store.trial_runs(study, f"tags.{names.TRIAL} = '{int(number[1])}'")
        if not found:
            raise UserError(f"study {study!r} has no trial #{number[1]} in {store.shown}")
        return found[0]
    if not re.fullmatch(r"[0-9a-f]{32}", word):
        raise UserError(
            f"a run is called by its id, 32 hex digits, or with --study NAME by its trial's "
            f"number, but got {word[:80]!r}"
        )
    try:
        run = store.client.get_run(word)
    except MlflowException:
        raise UserError(
            f"there is no run {word} in {store.shown}; copy its id from the UI, or from compare "
            "--study NAME --csv"
        ) from None
    if run.info.lifecycle_stage != "active":
        raise UserError(f"run {word} was deleted; restore it in the UI, or leave it out")
    if run.data.tags.get(names.KIND) == names.KIND_STUDY:
        name = run.data.tags.get(names.STUDY, "")
        raise UserError(
            f"only trials stand side by side, but run {word} is that of a whole study; see its "
            f"trials with compare --study {name}"
        )
    of_trial = run.data.tags.get(names.KIND) == names.KIND_TRIAL
    if run.info.experiment_id != store.experiment_id or not of_trial:
        raise UserError(f"run {word} is no trial of this program's; leave it out")
    if study and run.data.tags.get(names.STUDY) != study:
        raise UserError(f"run {word} is none of study {study!r}; leave out --study")
    return run


def why_not_ranked(rows: Sequence[Row]) -> str:
    """Return in a line why accuracies of runs do not compare; nothing where they do."""
    for name, words in zip(MEASURED_BY, ("on different corpora", *[OTHERWISE] * 2), strict=True):
        values = [row.tags.get(name, "-") for row in rows]
        if len(set(values)) > 1:
            corpora = [row.tags.get("corpus", "-") for row in rows]
            if name == "corpus.digest":
                values = corpora if len(set(corpora)) > 1 else [value[:12] for value in values]
            shown = " and ".join(dict.fromkeys(values))
            return f"Not ranked: these accuracies were measured {words} ({shown})."
    return ""


def numbered(rows: Sequence[Row]) -> list[Numbered]:
    """Return runs with their ranks, where they have any, and the seeds of each one's point."""
    places = [None] * len(rows) if why_not_ranked(rows) else ranks(rows)
    return list(zip(places, seeds_of(rows), rows, strict=True))


def describe_runs(rows: Sequence[Row], width: int) -> str:
    """Return all that is to be said of runs that stand side by side."""
    letters = string.ascii_uppercase[: len(rows)]
    parts = [
        "\n".join(f"{letter}  {_name(row)}" for letter, row in zip(letters, rows, strict=True)),
        _results(rows, letters, width),
        _differences(rows, letters, width),
        _curves(rows, letters, width),
    ]
    return "\n\n".join(part for part in parts if part)


def _name(row: Row) -> str:
    study = row.tags.get(names.STUDY)
    where = f"#{row.trial} of study {study}" if study else "of train_trial.py"
    return f"{row.point or '(no point)'}, {where}, {row.state}, run {row.run_id}"


def _results(rows: Sequence[Row], letters: str, width: int) -> str:
    """Return what the runs scored and cost, and what a paired test says, or why there is none."""
    not_ranked = why_not_ranked(rows)
    columns = [
        Column("run", list(letters), is_words=True),
        Column("rank", [str(place or "-") for place, _, _ in numbered(rows)]),
        Column("whole", [format_accuracy(row.whole) for row in rows]),
        Column("crops", [format_accuracy(row.crops) for row in rows]),
        Column("parameters", [f"{row.parameters:,}" for row in rows]),
        Column("seconds", [f"{row.seconds:.1f}" for row in rows]),
        Column("utterances/s", ["-" if r.rate is None else f"{r.rate:,.0f}" for r in rows]),
    ]
    lines = text_lines(columns, width)
    lines += [not_ranked] if not_ranked else tests(rows, letters)
    return "\n".join(lines)


def tests(rows: Sequence[Row], letters: str) -> list[str]:
    """Return a line for each run after the first: whether the first is better, by the utterances
    that only one of the two gets right.
    """
    lines = []
    for letter, row in zip(letters[1:], rows[1:], strict=True):
        pair = f"{letters[0]} and {letter}"
        found = compare_hits(rows[0].hits, row.hits)
        if found is None:
            lines.append(f"{pair}: no paired test, as not both keep which utterances were right.")
            continue
        means = "no more than luck explains" if found.pvalue > SURE else "more than luck explains"
        lines.append(
            f"{pair}: {found.gained} utterances are right in {letters[0]} alone, {found.lost} in "
            f"{letter} alone: {means} (McNemar's test, p = {found.pvalue:.2g})."
        )
    return lines


def _differences(rows: Sequence[Row], letters: str, width: int) -> str:
    found = differences(rows)
    if not found:
        return "They differ in nothing that their runs record."
    columns = [Column("differs", [name for name, _ in found], is_words=True)]
    for place, letter in enumerate(letters):
        cells = [_short(values[place]) for _, values in found]
        columns.append(Column(letter, cells, is_words=True))
    return "\n".join(text_lines(columns, width))


def differences(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return the fields of the config, then what is known of data and origin, in which runs differ,
    each with its values; a dash where a run does not have it.
    """
    defaults = {name: TrialConfig().to_dict()[name] for name in ADDED_LATER}
    configs = [{**defaults, **row.values} if row.values else {} for row in rows]
    tagged = dict.fromkeys(
        name for prefix in ORIGIN for row in rows for name in row.tags
        if name == prefix or (prefix.endswith(".") and name.startswith(prefix))
    )  # fmt: skip
    fields = TrialConfig().to_dict()
    all_values = [
        *((name, [str(config.get(name, "-")) for config in configs]) for name in fields),
        *((name, [row.tags.get(name, "-") for row in rows]) for name in tagged),
    ]
    return [(name, values) for name, values in all_values if len(set(values)) > 1]


def _curves(rows: Sequence[Row], letters: str, width: int) -> str:
    """Return the accuracies on whole utterances by step; where there are many, of some steps."""
    curves = [
        {round(share * float(row.values.get("steps", 1))): value for share, value in row.curve}
        for row in rows
    ]
    steps = sorted(set().union(*curves))
    if not steps:
        return ""
    count = min(len(steps), MAX_LINES)
    kept = [steps[-(-len(steps) * (each + 1) // count) - 1] for each in range(count)]
    columns = [Column("step", [f"{step:,}" for step in kept])]
    for letter, curve in zip(letters, curves, strict=True):
        columns.append(Column(letter, [format_accuracy(curve.get(step)) for step in kept]))
    lines = ["Accuracy on whole utterances:", *text_lines(columns, width)]
    if count < len(steps):
        lines.append(f"{count} of {len(steps)} evaluations are shown.")
    return "\n".join(lines)


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE - 3]}..."
