"""What was published of some points, against what a study of `--preset reproduce` measured."""

from collections.abc import Sequence
from statistics import mean, stdev

from experiments.analysis.leaderboard import Row
from experiments.proposals.presets import REPRODUCED
from speaker.config import HOMEWORK_BASELINE


def describe_reproduction(rows: Sequence[Row]) -> str:
    """Return a table of published and measured accuracies on whole utterances, a line a point, with
    the seeds that collapsed; nothing for a study without such points.
    """
    lines = []
    for name, (_changes, published) in REPRODUCED.items():
        mine = [row for row in rows if row.preset == name]
        if mine:
            lines.append(_line(name.removeprefix("published-"), published, mine))
    if not lines:
        return ""
    steps = {row.values.get("steps") for row in rows if row.preset in REPRODUCED}
    head = (
        f"{'point':<16} {'published':>9} {'measured':>8} {'sd':>6} {'seeds':>5} {'difference':>10}"
    )
    table = [head, *lines]
    if steps != {HOMEWORK_BASELINE.steps}:
        table.append(
            f"Published after {HOMEWORK_BASELINE.steps:,} steps on the homework's corpus, which "
            "these are not: compare the order, not the values."
        )
    return "\n".join(table)


def _line(name: str, published: float, rows: Sequence[Row]) -> str:
    """Return a point's line: the mean over its complete seeds, and their standard deviation."""
    values = [row.whole for row in rows if row.state == "complete" and row.whole is not None]
    measured = f"{mean(values):.4f}" if values else "-"
    spread = f"{stdev(values):.4f}" if len(values) > 1 else "-"
    difference = f"{mean(values) - published:+.4f}" if values else "-"
    collapsed = sum(row.state == "collapsed" for row in rows)
    note = f"  {collapsed} of {len(rows)} seeds collapsed" if collapsed else ""
    return (
        f"{name:<16} {published:>9.3f} {measured:>8} {spread:>6} {len(values):>5} "
        f"{difference:>10}{note}"
    )
