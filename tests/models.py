"""Runs as finished trials leave them, with untrained models."""

from dataclasses import replace
from typing import Any

import torch

from experiments.context import TrainingContext
from experiments.tracking.store import TrackingStore
from speaker.common.seeding import generator
from speaker.model.classifier import SpeakerClassifier
from speaker.training.metrics import ACCURACY_CROPS, ACCURACY_WHOLE, LOSS_WHOLE, hex_of
from speaker.training.outcome import Outcome
from speaker.training.train import TrialResult
from tests.helpers import TINY


def finished_run(
    store: TrackingStore, context: TrainingContext, number: int, hits: str, **tags: Any
) -> tuple[str, SpeakerClassifier]:
    """Leave the run of a trial of study s that told right the validation utterances of which
    `hits` has a 1; return its id and its model.
    """
    torch.manual_seed(number)
    model = SpeakerClassifier(TINY, 40, len(context.pack.speakers)).eval()
    told_right = torch.tensor([letter == "1" for letter in hits], dtype=torch.bool)
    whole = float(told_right.float().mean())
    best = {ACCURACY_WHOLE: whole, ACCURACY_CROPS: whole / 2, LOSS_WHOLE: 1.0}
    run = store.open_run(f"#{number} {TINY.label()}", {"study": "s", "trial": str(number), **tags})
    run.log_setup(TINY, context)
    result = TrialResult(
        Outcome.COMPLETE,
        steps=1,
        best_step=1,
        best=best,
        weights=model.state_dict(),
        hits=hex_of(told_right),
    )
    run.log(1, best)
    run.log_result(result, TINY, context)
    run.close("complete")
    return run.run_id, model


def other_corpus(context: TrainingContext, **changes: Any) -> TrainingContext:
    """Return a context whose pack says that it is of another corpus."""
    return replace(context, pack=replace(context.pack, **{"digest": "f" * 64, **changes}))


def some_hits(share: float, count: int, seed: int) -> str:
    """Return invented hits."""
    drawn = torch.rand(count, generator=generator(seed, "hits"))
    return "".join("01"[int(value < share)] for value in drawn.tolist())
