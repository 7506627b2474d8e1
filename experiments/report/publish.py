"""Keep a study's page where the study is: with its run in MLflow."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from experiments.tracking.store import TrackingStore
from speaker.common.cli import printable
from speaker.common.errors import first_line

# Imports are late: the figures' library takes a second, and what fails to import is no search lost.


@dataclass(frozen=True)
class Report:
    """A study's page, and what describes the study's run."""

    run_id: str
    page: str
    summary: str


def make_report(store: TrackingStore, name: str) -> Report:
    """Read a study and render its page. Raises UserError for an unknown study."""
    from experiments.report.page import render
    from experiments.report.sentences import summary
    from experiments.report.study import read_study

    study = read_study(store, name)
    return Report(study.run_id, render(study), summary(study))


def keep(store: TrackingStore, report: Report) -> str:
    """Keep a page with its study's run, and return the address that it is kept at."""
    return store.log_report(report.run_id, report.page, report.summary)


def publish(
    store: TrackingStore,
    name: str,
    insist: Callable[[Callable[[], str]], str] = lambda call: call(),
) -> str:
    """Make and keep a study's page after a search, and return its address: what fails, however
    much its caller insists, is said in a line, and costs nothing but the page.
    """
    try:
        return insist(lambda: keep(store, make_report(store, name)))
    except Exception as error:
        cause = printable(first_line(error))
        print(
            f"warning: the study is whole, but its report was not written ({cause}); "
            f"python -m experiments report --study {name} tries again",
            file=sys.stderr,
        )
        return ""
