"""Models for `predict` and `name`: copied out of MLflow into a temporary folder,
for as long as they are needed.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from speaker.common.paths import STATE
from speaker.prediction.verbs import is_local


@contextlib.contextmanager
def model_folders(arguments: argparse.Namespace) -> Iterator[list[Path]]:
    """Give the folders of the models that are asked for.

    Raises UserError when there are no such models.
    """
    from experiments.analysis.leaderboard import best_runs
    from experiments.registry.versions import download_model
    from experiments.tracking.store import existing_store

    if is_local(arguments):
        yield [Path(arguments.model)]
        return
    store = existing_store(arguments.tracking_uri, STATE)
    names = [arguments.model or "champion"]
    if arguments.ensemble:
        names = best_runs(store, arguments.study, arguments.ensemble)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(rank)) for rank in range(1, len(names) + 1)]
        for name, folder in zip(names, folders, strict=True):
            download_model(store, name, folder)
        yield folders
