"""What a search has found, in sentences: the winner, how sure that is, and what equals it."""

import textwrap

from experiments.analysis.leaderboard import SURE, Row
from speaker.training.metrics import format_accuracy

MAX_NAMED = 5  # trials in a line


def describe_answer(rows: list[Row]) -> str:
    """Return what the ranked trials of a study say, a few lines; nothing if they say nothing."""
    complete = [row for row in rows if row.state == "complete"]
    if not complete or complete[0].expected is None:
        return ""
    winner, count = complete[0], len(complete[0].hits)
    low, high = complete[0].expected.interval()
    lines = [
        f"Winner: {_name(winner)}. On new utterances of these speakers expect "
        f"{format_accuracy(complete[0].expected.mean)}, nine times out of ten between "
        f"{format_accuracy(max(low, 0.0))} and {format_accuracy(min(high, 1.0))}; it had "
        f"{format_accuracy(winner.whole)} on {count:,} validation utterances.",
    ]
    tied = [row for row in complete[1:] if row.is_tied]
    if tied:
        named = ", ".join(f"#{row.trial}" for row in tied[:MAX_NAMED])
        more = f" and {len(tied) - MAX_NAMED} more" if len(tied) > MAX_NAMED else ""
        lines.append(
            f"These utterances cannot tell it from {len(tied)} of the {len(complete) - 1} other "
            f"complete trials (McNemar's test, p > {SURE}): {named}{more}."
        )
        smallest = min((winner, *tied), key=lambda row: row.parameters)
        quickest = min((winner, *tied), key=lambda row: row.seconds)
        lines.append(
            f"Among these the smallest is {_name(smallest)} ({smallest.parameters:,} parameters), "
            f"the quickest {_name(quickest)} ({quickest.seconds:.1f} s)."
        )
    return "\n".join(textwrap.fill(line, 79) for line in lines)


def _name(row: Row) -> str:
    return f"#{row.trial} {row.point}"
