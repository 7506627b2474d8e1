"""Keep a study's page where the study is: with its run in MLflow."""

import sys

from experiments.tracking.store import TrackingStore
from speaker.common.errors import first_line

# Imports are late: the figures' library takes a second, and what fails to import is no search lost.


def publish(store: TrackingStore, name: str) -> tuple[str, str]:
    """Render a study's page and keep it with the study's run; return it, and the address that it is
    kept at.

    Raises UserError for an unknown study.
    """
    from experiments.report.page import render
    from experiments.report.sentences import summary
    from experiments.report.study import read_study

    study = read_study(store, name)
    page = render(study)
    return page, store.log_report(study.run_id, page, summary(study))


def publish_safely(store: TrackingStore, name: str) -> str:
    """Publish a study's page after a search, and return its address: what fails is said in a line,
    and costs nothing but the page.
    """
    try:
        return publish(store, name)[1]
    except Exception as error:
        print(
            f"warning: the study is whole, but its report was not written ({first_line(error)}); "
            f"python -m experiments report --study {name} tries again",
            file=sys.stderr,
        )
        return ""
