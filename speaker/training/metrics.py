"""What a training measures, by name. These are the names in MLflow, too:
what stands before the slash groups the charts.

Accuracies are in [0, 1], losses in nats.
"""

from torch import Tensor

Metrics = dict[str, float]

ACCURACY_WHOLE = "valid/accuracy_whole"  # on whole utterances
ACCURACY_CROPS = "valid/accuracy_crops"  # on one crop of each
LOSS_WHOLE = "valid/loss_whole"
OBJECTIVE = ACCURACY_WHOLE  # what a search maximises, and the best weights are the best by

TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
LEARNING_RATE = "train/lr"
LOSS_SCALE = "train/loss_scale"  # in float16 only
SKIPPED_STEPS = "train/skipped_steps"  # in float16 only: their gradients overflowed

STEPS_PER_S = "speed/steps_per_s"
UTTERANCES_PER_S = "speed/valid_uttr_per_s"
CROPS_PER_S = "speed/valid_crops_per_s"


def format_accuracy(value: float | None) -> str:
    """Return an accuracy as it is shown, or a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def hex_of(hits: Tensor) -> str:
    """Return hits, bool (n,), as hex digits: a bit an utterance, the first one highest, after a 1
    that keeps the length.
    """
    return f"{int('1' + ''.join('01'[hit] for hit in hits.tolist()), 2):x}"


def hits_of(text: str) -> list[bool]:
    """Return the hits that `hex_of` wrote. Raises ValueError for other text."""
    return list(map("1".__eq__, f"{int(text, 16):b}"[1:]))  # a study has millions
