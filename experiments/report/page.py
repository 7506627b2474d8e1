"""A study's page: one HTML file that needs nothing else: no network, and to be read no script."""

import html
import itertools
import shlex
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from experiments.analysis.effects import effects_of
from experiments.analysis.leaderboard import Row
from experiments.report import figures, sentences, sorting
from experiments.report.levels import Importance, groups, importances, shown, varied
from experiments.report.origin import facts_of
from experiments.report.study import Study
from experiments.report.style import CSS
from experiments.report.svg import short, to_svg
from experiments.report.words import behind, between, duration, many, number
from speaker.common.paths import STATE
from speaker.training.metrics import wilson

BEGINNING = "<!doctype html>\n<!-- study report -->"  # how these pages can be told from others
LISTED = 1_000  # trials in the table; more make no page that a person reads
BEST = 12  # trials of which intervals are drawn
PAIRED = 3  # parameters of which pairs are shown
ACROSS = 6  # parameters that lines are drawn across
CONFUSED = 10  # pairs of speakers, and speakers, that are listed
# The browser enforces it.
OFFLINE = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sorting.SHA256}'"

LUCK = (
    "All trials are scored on the same utterances, so the difference of two is surer than their "
    "intervals suggest. Expected accuracies come from a model of the study's curves, which allows "
    "for the luck of having been chosen."
)

Section = tuple[str, str, str]  # question, answer, and HTML


def render(study: Study) -> str:
    """Return a study's page. All that comes from the study is escaped."""
    found = importances(study.rows)
    sections = [
        ("What won?", sentences.what_won(study), _tiles(study)),
        ("Is it real?", sentences.is_it_real(study), _real(study)),
        ("How did the search get there?", sentences.how_it_got_there(study), _history(study)),
        ("What mattered?", sentences.what_mattered(study, found), _mattered(study, found)),
        _together(study, found),
        ("What does it cost?", sentences.what_it_costs(study), _cost(study)),
        ("Would longer training change it?", sentences.would_longer_help(study), _curves(study)),
        ("Who is confused with whom?", sentences.who_is_confused(study), _confused(study)),
        ("What was tried?", sentences.what_was_tried(study), _trials(study)),
        ("Where do the numbers come from?", sentences.what_was_measured(study), _origin(study)),
        ("What next?", "From the folder that the search was started in:", _next(study)),
    ]
    title = escape(f"{study.name}: study report")
    return (
        f'{BEGINNING}\n<html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style><main><p class=kicker>{_kicker(study)}</p>"
        f"<h1>{escape(sentences.headline(study))}</h1>{''.join(map(_section, sections))}"
        f"</main><script>{sorting.SCRIPT}</script></html>\n"
    )


def escape(text: object) -> str:
    """Return a text as HTML shows it."""
    return html.escape(str(text))


def _section(section: Section) -> str:
    question, answer, body = section
    return f"<section><h2>{question}</h2><p class=answer>{escape(answer)}</p>\n{body}</section>\n"


def _note(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>" if text else ""


def _figure(figure: Figure, name: str, alternative: str, caption: str = "") -> str:
    """Return a figure; its alternative says what it shows to those who do not see it."""
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{words}{to_svg(figure, name, alternative)}</figure>"


def _grid(cells: Iterable[str]) -> str:
    return f"<div class=grid>{''.join(cells)}</div>"


def _table(
    head: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1, kind: str = ""
) -> str:
    """Return a table of a kind; the last columns, so many, hold words, and all else numbers."""
    lines = []
    for row in rows:
        start = len(row) - words
        numbers = "".join(f"<td>{escape(cell)}" for cell in row[:start])
        texts = "".join(f"<td class=l>{escape(cell)}" for cell in row[start:])
        lines.append(f"<tr>{numbers}{texts}")
    top = "".join(f"<th>{escape(cell)}" for cell in head[: len(head) - words])
    top += "".join(f"<th class=l>{escape(cell)}" for cell in head[len(head) - words :])
    return f"<div class=scroll><table{kind}><thead><tr>{top}<tbody>{''.join(lines)}</table></div>"


def _kicker(study: Study) -> str:
    facts = [f"Study {study.name}", f"{many(len(study.rows), 'trial')}"]
    if steps := study.params.get("steps", ""):
        facts[1] += f" of {int(steps):,} steps" if steps.isdigit() else f" of {steps} steps"
    facts += [f"{key} {study.tags[key]}" for key in ("corpus", "device") if key in study.tags]
    return escape(" · ".join(facts))


def _tiles(study: Study) -> str:
    winner, baseline = study.winner, study.baseline
    if winner is None:
        return ""
    tiles = []
    if winner.expected:
        bounds = between(winner.expected.interval())
        tiles.append(
            (number(winner.expected.mean), "expected on new utterances", f"90 %: {bounds}")
        )
    bounds = ""
    if winner.hits and winner.whole is not None:
        bounds = f"90 %: {between(wilson(winner.whole, len(winner.hits)))}"
    tiles.append((number(winner.whole), "on the validation utterances", bounds))
    if baseline and baseline is not winner:
        gain = f"{100 * ((winner.whole or 0) - (baseline.whole or 0)):+.1f}"
        tiles.append((gain, "points over the baseline", f"which has {number(baseline.whole)}"))
    than = baseline if baseline and baseline is not winner else None
    tiles.append((short(winner.parameters), "parameters",
                  f"baseline {short(than.parameters)}" if than else ""))  # fmt: skip
    tiles.append((duration(winner.seconds), "of training",
                  f"baseline {duration(than.seconds)}" if than else ""))  # fmt: skip
    cells = (f"<div><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(more)}</small>"
             "</div>" for value, what, more in tiles)  # fmt: skip
    return f"<div class=tiles>{''.join(cells)}</div>"


def _real(study: Study) -> str:
    if study.winner is None:
        return ""
    rows = study.complete[:BEST]
    rows += [row for row in study.complete[BEST:] if figures.is_homework(row)][:BEST]
    said = f"{many(len(rows), 'trial')} with intervals. {sentences.is_it_real(study)}"
    more = (sentences.what_repeats_say(study), sentences.what_was_confirmed(study))
    return (
        _figure(figures.draw_best(rows), "best", said)
        + "".join(f"<p>{escape(text)}</p>" for text in more if text)
        + _confirmation(study)
        + _note(LUCK)
    )


def _confirmation(study: Study) -> str:
    if study.confirmation is None:
        return ""
    best = study.confirmation.points[0]
    return _table(
        ("seeds", "mean", "spread", "behind the best, 90 % interval", "point"),
        (
            (
                len(each.values),
                number(each.mean),
                number(each.spread) if len(each.values) > 1 else "-",
                "best" if each is best else behind(each.difference, each.half_width),
                each.point,
            )
            for each in study.confirmation.points
        ),
    )


def _history(study: Study) -> str:
    if not study.rows:
        return ""
    said = f"Accuracy of every trial in order. {sentences.how_it_got_there(study)}"
    note = "At the foot stand trials that never got a score."
    unscored = any(figures.score(row) is None for row in study.rows)
    return _figure(figures.draw_history(study.rows), "history", said) + _note(note * unscored)


def _mattered(study: Study, found: Sequence[Importance]) -> str:
    panels = [
        _figure(
            figures.draw_parameter(study.rows, each.name),
            f"parameter-{each.name}",
            f"Accuracy by {each.name}: " + "; ".join(
                f"{label}: mean {sentences.mean_of(rows):.3f} of {len(rows)}"
                for label, rows in groups(each.name, study.complete)),
            f"<b>{escape(each.name)}</b> {sentences.share(each)} of the differences",
        )
        for each in found
    ]  # fmt: skip
    note = (
        "A dot is a complete trial, a bar the median of its value. Share: epsilon squared of a "
        "one-way analysis of variance (Kelley 1935), ± its 90 % interval by the jackknife; the "
        "quarters of a parameter with many values count as its values. The search looks more often "
        "where it is good, so these are hints."
    )
    edits = ""
    if effects := effects_of(study.rows):
        said = sentences.what_edits_earned(effects)
        edits = f"<p>{escape(said)}</p>{_figure(figures.draw_effects(effects), 'edits', said)}"
    return (_grid(panels) + _note(note) if panels else "") + edits


def _together(study: Study, found: Sequence[Importance]) -> Section:
    fields = [each.name for each in found][:PAIRED]
    tables = [_heat(study.complete, *pair) for pair in itertools.combinations(fields, 2)]
    said = sentences.what_goes_together(study, fields)
    if not tables:
        return "What goes together?", said, ""
    names = [each.name for each in found][:ACROSS]
    alternative = f"The complete trials as lines across {', '.join(names)} to their accuracy."
    body = (
        f"<div class=row>{''.join(tables)}</div>"
        + _note("Mean accuracy of the complete trials (how many).")
        + _figure(figures.draw_parallel(study.rows, names), "parallel", alternative)
        + _note(
            "A line is a complete trial, the darker the better. "
            + sentences.best_drawn(len(study.complete))
        )
    )
    return "What goes together?", said, body


def _heat(rows: list[Row], one: str, other: str) -> str:
    """Return the means and counts of pairs of values, shaded from the worst to the best."""
    lines, columns = groups(one, rows), groups(other, rows)
    cells = [[sentences.shared(mine, theirs) for _, theirs in columns] for _, mine in lines]
    means = [sentences.mean_of(cell) for line in cells for cell in line if cell]
    low, span = min(means, default=0), max(means, default=0) - min(means, default=0)

    def shade(cell: list[Row]) -> str:
        if not cell:
            return "<td>"
        mean = sentences.mean_of(cell)
        part = (mean - low) / span if span else 0.5
        return (
            f'<td style="--heat:{0.08 + 0.42 * part:.2f}">{mean:.2f} <small>({len(cell)})</small>'
        )

    body = "".join(f"<tr><th>{escape(label)}{''.join(map(shade, line))}"
                   for (label, _), line in zip(lines, cells, strict=True))  # fmt: skip
    head = "".join(f"<th>{escape(label)}" for label, _ in columns)
    caption = f"{escape(one)} (down) and {escape(other)} (across)"
    return (f"<div class=scroll><table class=heat><caption>{caption}</caption>"
            f"<tr><td>{head}{body}</table></div>")  # fmt: skip


def _cost(study: Study) -> str:
    panels = [
        _figure(
            figures.draw_cost(study.rows, cost),
            f"cost-{cost}",
            f"Accuracy by {words}; on the front: {sentences.what_is_on_the_front(study, cost)}",
            f"<b>{words}</b>",
        )
        for cost, words in figures.COSTS.items()
        if any(getattr(row, cost) > 0 for row in study.complete)
    ]
    note = "The line is the front: nothing that was trained to the end is both better and cheaper."
    return _grid(panels) + _note(note) if panels else ""


def _curves(study: Study) -> str:
    if not figures.curves_of(study.rows):
        return ""
    said = f"Accuracy while training. {sentences.would_longer_help(study)}"
    drawn = _figure(figures.draw_curves(study.rows), "curves", said)
    return drawn + _note(sentences.what_curves_show(study))


def _confused(study: Study) -> str:
    if not study.predictions:
        return ""
    said = f"Accuracy by length: {sentences.accuracies(study.lengths)}."
    drawn = _figure(figures.draw_lengths(study.lengths), "lengths", said)
    pairs = _table(
        ("times", "of", "speaker", "was taken for"),
        ((each.times, each.count, each.speaker, each.predicted)
         for each in study.confusions[:CONFUSED]),
        words=2,
    )  # fmt: skip
    worst = _table(
        ("right", "of", "speaker"),
        ((each.right, each.count, each.name) for each in study.speakers[:CONFUSED]),
    )
    return drawn + _note("Bars are 90 % intervals.") + f"<div class=row>{pairs}{worst}</div>"


def _trials(study: Study) -> str:
    """Return all trials as a table: the complete ones best first, then the others in order."""
    if not study.rows:
        return ""
    fields = varied(study.rows)
    head = ("rank", "trial", "expected", "whole", "crops", "parameters", "seconds", *fields,
            "remarks")  # fmt: skip
    lines = []
    for rank, row in enumerate(study.rows[:LISTED], start=1):
        place = 1 if row.is_tied else rank
        lines.append((
            place if row.state == "complete" else "",
            f"#{row.trial}",
            number(row.expected.mean) if row.expected else "-",
            sentences.best_of(row),
            number(row.crops),
            f"{row.parameters:,}",
            f"{row.seconds:.1f}",
            *(shown(row.values[field]) if field in row.values else "" for field in fields),
            sentences.text_of(row),
        ))  # fmt: skip
    note = "Rank 1 is shared by all that the validation utterances cannot tell from the winner."
    note += f" {len(study.rows) - LISTED:,} more are not listed." * (len(study.rows) > LISTED)
    return _table(head, lines, kind=" class=sortable") + _note(note)


def _origin(study: Study) -> str:
    facts = facts_of(study).items()
    return f"<dl>{''.join(f'<dt>{escape(key)}<dd>{escape(value)}' for key, value in facts)}</dl>"


def _next(study: Study) -> str:
    name = shlex.quote(study.name)
    is_demo = study.tags.get("corpus") == "demo"
    data = "" if is_demo else " --data FOLDER"  # of a study: the demo is what it is without
    folder = f"{STATE}/demo" if is_demo else "FOLDER"
    lines = [f"python -m experiments compare --study {name}"]
    if study.winner:
        confirm = f"python -m experiments confirm --study {name}{data}"
        lines += [confirm] if not study.confirmation and len(study.complete) > 1 else []
        lines += [
            f"python -m experiments promote --study {name}",
            f"python -m speaker predict --data {folder} --model champion",
        ]
    lines += ["python -m experiments ui"]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
