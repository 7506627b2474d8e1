"""The sentences of a study's page: each answers a question, from the data alone."""

import math
from collections import Counter

from experiments.analysis.breakdown import Part
from experiments.analysis.effects import Effects
from experiments.analysis.leaderboard import SURE, Row
from experiments.report.figures import MAX_CURVES, best_so_far, front, score
from experiments.report.levels import Importance, groups, scored
from experiments.report.study import Study
from experiments.report.words import ENDS, between, duration, listed, many, name, number
from speaker.training.metrics import wilson

NOTHING = "No trial is complete yet, so nothing can be said."


def headline(study: Study) -> str:
    """Return the page's title: what won, against the baseline."""
    winner, baseline = study.winner, study.baseline
    if winner is None:
        return "No trial is complete yet"
    if baseline is winner:
        return f"The homework's baseline point won with {number(winner.whole)}"
    against = f", the homework's baseline has {number(baseline.whole)}" if baseline else ""
    return f"{winner.point} won with {number(winner.whole)}{against}"


def what_won(study: Study) -> str:
    """Say which trial won, with what score and gain, how large it is and how long it took."""
    winner = study.winner
    if winner is None:
        return NOTHING
    utterances = f"{len(winner.hits):,} validation utterances" if winner.hits else "the valid part"
    said = f"{name(winner)} won: it had {number(winner.whole)} on {utterances}"
    if winner.hits and winner.whole is not None:
        said += f" (90 % interval {between(wilson(winner.whole, len(winner.hits)))})"
    said += f", with {winner.parameters:,} parameters, after {duration(winner.seconds)}. "
    return said + _gain(winner, study.baseline)


def _gain(winner: Row, baseline: Row | None) -> str:
    if baseline is None:
        return "The homework's baseline point was not trained to the end here."
    if baseline is winner:
        return "It is the homework's baseline point."
    points = 100 * (winner.whole or 0) - 100 * (baseline.whole or 0)
    said = f"That is {points:+.1f} points against the homework's baseline point under the same "
    said += f"budget (#{baseline.trial}, {number(baseline.whole)})"
    if baseline.is_tied:
        return f"{said}, which is no more than luck explains."
    return f"{said}." if not winner.hits else f"{said}, more than luck explains."


def is_it_real(study: Study) -> str:
    """Say what equals the winner, and what to expect of it on new utterances."""
    winner = study.winner
    if winner is None:
        return NOTHING
    if winner.expected is None:
        return "These runs keep no record of which utterances were right, so luck cannot be judged."
    said = (
        f"On new utterances of these speakers expect {number(winner.expected.mean)} of "
        f"#{winner.trial}, nine times out of ten {between(winner.expected.interval())}. "
    )
    others = len(study.complete) - 1
    if not others:
        return f"{said}It is the only complete trial: nothing to compare it with."
    if not study.tied:
        return f"{said}Each of the other {many(others, 'complete trial')} is worse beyond luck."
    numbers = [f"#{row.trial}" for row in study.tied]
    return (
        f"{said}The utterances cannot tell it from {len(numbers)} of the {others:,} other complete "
        f"trials (McNemar's test, p > {SURE}): {listed(numbers)}."
    )


def repeats(study: Study) -> list[tuple[str, list[Row]]]:
    """Return the points that were trained to the end more than once, with those trials."""
    points: dict[str, list[Row]] = {}
    for row in sorted(study.complete, key=lambda row: int(row.trial)):
        points.setdefault(_key(row), []).append(row)
    return [(rows[0].point, rows) for rows in points.values() if len(rows) > 1]


def _key(row: Row) -> str:
    """Return what a point's trials have in common: all but the seed."""
    fields = sorted((field, value) for field, value in row.values.items() if field != "seed")
    return f"{row.point} {fields}"


def what_repeats_say(study: Study) -> str:
    """Say how far seeds of one point are apart; nothing where no point was repeated."""
    found = repeats(study)
    if not found:
        return ""
    scores = [[row.whole or 0 for row in rows] for _, rows in found]
    apart = max(max(values) - min(values) for values in scores)
    shown = [f"{point} {', '.join(number(row.whole) for row in rows)}" for point, rows in found]
    return (
        f"{many(len(found), 'point')} had more than one seed, up to {100 * apart:.1f} points of "
        f"accuracy apart: {listed(shown, 4)}."
    )


def what_was_confirmed(study: Study) -> str:
    """Say what fresh seeds say of the best points, or how to get them."""
    found = study.confirmation
    if found is None:
        return "The lead was not confirmed on fresh seeds yet." if study.winner else ""
    best, *others = found.points
    tied = [each.point for each in others if not each.difference > each.half_width]
    bounds = between(found.expected.interval())
    said = (
        f"Trained again on fresh seeds ({study.confirmed_by}), {best.point} is best of "
        f"{len(found.points)} with a mean of {number(best.mean)}; expect "
        f"{number(found.expected.mean)}, nine times out of ten {bounds}."
    )
    return said + (f" It cannot be told from {listed(tied)}." if tied else "")


def how_it_got_there(study: Study) -> str:
    """Say when the last better trial came, and how the trials ended."""
    counts = Counter(row.state for row in study.rows)
    ends = ", ".join(f"{counts[state]:,} {words}" for state, words in ENDS.items() if counts[state])
    said = f"{many(len(study.rows), 'trial')} ended: {ends}." if study.rows else "None has ended."
    numbers, _ = best_so_far(study.rows)
    if not numbers:
        return said
    record = numbers[-2]
    later = sum(int(row.trial) > record for row in study.rows)
    since = f"{later:,} later ones brought none" if later else "it was the last one"
    return f"The last better accuracy came with trial #{record}; {since}. {said}"


def what_was_tried(study: Study) -> str:
    """Say how many points were tried, and what that took."""
    points = len({_key(row) for row in study.rows})
    seconds = math.fsum(row.seconds for row in study.rows)
    return (
        f"{many(points, 'point')} in {many(len(study.rows), 'trial')}, {duration(seconds)} of "
        "training in all. The complete ones come first, then the others with the reason."
    )


def what_was_measured(study: Study) -> str:
    """Say what the numbers are of, and what made them."""
    tags = study.tags
    utterances = (
        f"{study.utterances:,} validation utterances" if study.utterances else "the valid part"
    )
    said = f"They are accuracies on {utterances} of the corpus {tags.get('corpus', '(unknown)')}"
    if commit := tags.get("mlflow.source.git.commit"):
        dirty = ", with changes that are in no commit" * (tags.get("git.dirty") == "true")
        return f"{said}, by the code of commit {commit[:12]}{dirty}."
    return f"{said}; of which commit the code was is not known."


def what_mattered(study: Study, found: list[Importance]) -> str:
    """Say which parameter goes with the greatest share of the differences."""
    told = [each for each in found if not math.isnan(each.share)]
    if not told:
        return "There are too few complete trials, or too equal ones, to say what mattered."
    first = told[0]
    if not first.share > first.half_width:
        return (
            "No parameter stands out of the noise: the first, "
            f"{first.name}, goes with {share(first)} of the differences in accuracy."
        )
    levels = [(label, mean_of(rows)) for label, rows in groups(first.name, study.complete)]
    best, worst = max(levels, key=lambda each: each[1]), min(levels, key=lambda each: each[1])
    return (
        f"Most of all {first.name}, which goes with {share(first)} of the differences in accuracy: "
        f"a mean of {number(best[1])} with {best[0]}, of {number(worst[1])} with {worst[0]}."
    )


def share(found: Importance) -> str:
    """Return an importance in percent, with its uncertainty."""
    if math.isnan(found.share):
        return "an unknown share"
    width = "" if math.isnan(found.half_width) else f" ± {100 * found.half_width:.0f}"
    return f"{100 * found.share:.0f}{width} %"


def mean_of(rows: list[Row]) -> float:
    """Return the mean accuracy of rows, at least one."""
    return math.fsum(row.whole or 0 for row in rows) / len(rows)


def what_edits_earned(effects: Effects) -> str:
    """Say which of the homework's four edits earned how much."""
    best = max(effects.shares, key=lambda each: each.gain)
    return (
        f"The homework's four edits earned {100 * effects.total.gain:+.1f} points together, "
        f"{best.name} the most of them ({100 * best.gain:+.1f}; Shapley's shares over "
        f"{many(effects.seeds, 'seed')})."
    )


def what_goes_together(study: Study, fields: list[str]) -> str:
    """Say how much of the pairs of values was tried at all."""
    if len(fields) < 2:
        return "Fewer than two parameters vary among the complete trials, so there are no pairs."
    one, other = fields[:2]
    lines, columns = groups(one, study.complete), groups(other, study.complete)
    tried = sum(bool(shared(rows, others)) for _, rows in lines for _, others in columns)
    return (
        f"Of the {len(lines) * len(columns)} pairs of {one} and {other}, {tried} were trained to "
        "the end; an empty cell never was, and nothing is filled in."
    )


def shared(rows: list[Row], others: list[Row]) -> list[Row]:
    """Return the rows that are among others, too."""
    ids = {row.run_id for row in others}
    return [row for row in rows if row.run_id in ids]


def what_it_costs(study: Study) -> str:
    """Say what is as good and smaller, or quicker."""
    winner = study.winner
    if winner is None:
        return NOTHING
    equal = [winner, *study.tied]
    small = min(equal, key=lambda row: row.parameters)
    quick = min(equal, key=lambda row: row.seconds)
    ties = "as good within luck" if study.tied else "as good"
    said = f"None of the trials that are {ties} is smaller than the winner"
    if small is not winner:
        said = f"{name(small)} is {ties} with {small.parameters:,} parameters instead of "
        said += f"{winner.parameters:,}"
    if quick is winner:
        return f"{said}; none trained faster."
    return f"{said}; {name(quick)} trained in {duration(quick.seconds)} instead of " + (
        f"{duration(winner.seconds)}."
    )


def what_is_on_the_front(study: Study, cost: str) -> str:
    """Name the trials that no cheaper one equals."""
    return listed([f"#{row.trial} {number(row.whole)}" for row in front(study.rows, cost)], 5)


def still_rising(rows: list[Row]) -> list[Row]:
    """Return the complete rows whose accuracy was highest at the last of several evaluations."""
    return [
        row
        for row in scored(rows)
        if len(row.curve) > 1 and row.curve[-1][1] > max(value for _, value in row.curve[:-1])
    ]


def would_longer_help(study: Study) -> str:
    """Say how many curves rose to the end, and what that means."""
    told = [row for row in study.complete if len(row.curve) > 1]
    if not told:
        return "No complete trial was evaluated twice, so its curve cannot be judged."
    rising = still_rising(told)
    part = len(rising) / len(told)
    means = "a longer budget may change the order" if part > 1 / 3 else (
        "the budget is not what holds most of them back"
    )  # fmt: skip
    said = f"{len(rising):,} of {len(told):,} complete trials ({100 * part:.0f} %) were still at "
    said += f"their best at the last evaluation: {means}."
    if study.winner in told:
        said += f" The winner {'still rose' if study.winner in rising else 'no longer rose'}."
    return said


def what_curves_show(study: Study) -> str:
    """Say it where not all curves are drawn."""
    return best_drawn(sum(len(row.curve) > 1 for row in study.rows))


def best_drawn(count: int) -> str:
    """Say that of so many trials only the best are drawn, where that is so."""
    return f"Drawn are the best {MAX_CURVES} of {count:,}." if count > MAX_CURVES else ""


def accuracies(parts: list[Part]) -> str:
    """Return the accuracies of parts of the utterances."""
    return "; ".join(f"{part.name}: {number(part.accuracy)} of {part.count}" for part in parts)


def who_is_confused(study: Study) -> str:
    """Say how many utterances the winner told wrong, whom it confused, and what length does."""
    if not study.predictions or study.winner is None:
        return "No complete trial keeps its predictions, so it cannot be told."
    wrong = [each for each in study.predictions if not each.is_right]
    count = len(study.predictions)
    said = f"Of {count:,} validation utterances #{study.winner.trial} told {len(wrong):,} wrong"
    if not wrong:
        return f"{said}: there is nothing to confuse."
    first = study.confusions[0]
    said += (
        f". Most often it took {first.speaker} for {first.predicted}: {first.times} of "
        f"{first.count} utterances"
        if first.times > 1
        else "; it took nobody for the same other speaker twice"
    )
    short, long = study.lengths[0], study.lengths[-1]
    return (
        f"{said}. Of the shortest quarter ({short.name} frames) {number(short.accuracy)} were "
        f"right, of the longest ({long.name}) {number(long.accuracy)}."
    )


def summary(study: Study) -> str:
    """Return the description of a study's run: what won, and whether that is real."""
    if study.winner is None:
        return how_it_got_there(study)
    return f"{what_won(study)}\n\n{is_it_real(study)} {what_was_confirmed(study)}".rstrip()


def text_of(row: Row) -> str:
    """Return a trial's remarks: its preset, what it rescues, and why it is not complete."""
    rescue = f"rescue of #{row.rescue_of}" if row.rescue_of else ""
    seed = f"seed {row.replicate}" if row.replicate else ""
    state = "" if row.state == "complete" else ENDS.get(row.state, row.state)
    return "; ".join(word for word in (row.preset, seed, rescue, state, row.reason) if word)


def best_of(row: Row) -> str:
    """Return a trial's accuracy, also of one that was stopped."""
    return number(score(row))
