"""What a training measures, by name. These are the names in MLflow, too: what stands before the
slash groups the charts, in the order of the alphabet; a column shows a name's beginning.

Accuracies are in [0, 1], losses in nats, speeds a second.
"""

import math
from itertools import chain

from torch import Tensor

Metrics = dict[str, float]

WIDE = 1.645  # standard errors to each side hold nine of ten

ACCURACY_WHOLE = "accuracy/whole"  # on whole utterances
ACCURACY_CROPS = "accuracy/crops"  # on one crop of each
LOSS_WHOLE = "loss/whole"
OBJECTIVE = ACCURACY_WHOLE  # what a search maximises, and the best weights are the best by

TRAIN_LOSS = "loss/train"
TRAIN_ACCURACY = "accuracy/train"
LEARNING_RATE = "train/lr"
LOSS_SCALE = "train/loss_scale"  # in float16 only
SKIPPED_STEPS = "train/skipped_steps"  # in float16 only: their gradients overflowed

STEPS_PER_S = "speed/steps"
UTTERANCES_PER_S = "speed/utterances"
CROPS_PER_S = "speed/crops"


def format_accuracy(value: float | None) -> str:
    """Return an accuracy as it is shown, or a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 90 % interval of a share of so many (Wilson 1927)."""
    squared = WIDE**2
    middle = (share + squared / 2 / count) / (1 + squared / count)
    half = math.sqrt(share * (1 - share) / count + squared / 4 / count**2)
    half *= WIDE / (1 + squared / count)
    return middle - half, middle + half


# The bits of each digit of a hex number.
DIGITS = {f"{value:x}": tuple(bit == "1" for bit in f"{value:04b}") for value in range(16)}


def hex_of(hits: Tensor) -> str:
    """Return hits, bool (n,), as hex digits: a bit an utterance, the first one highest, after a 1
    that keeps the length.
    """
    return f"{int('1' + ''.join('01'[hit] for hit in hits.tolist()), 2):x}"


def hits_of(text: str) -> list[bool]:
    """Return the hits that `hex_of` wrote. Raises ValueError for other text."""
    if not set(text) <= DIGITS.keys():
        raise ValueError(f"hits are hex digits, but got {text[:80]!r}")
    bits = list(chain.from_iterable(DIGITS[digit] for digit in text))  # a study has millions
    return bits[bits.index(True) + 1 :]
