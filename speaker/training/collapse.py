"""Whether a training has collapsed: it will learn nothing more, whatever it is given to train on.

Its loss alone does not say so early on: within the warm-up a model that will be good still has
about that of guessing, the logarithm of the number of speakers. So a look takes a few training
crops, scores them as an evaluation does, and asks for signs that no budget and no number of
speakers moves:

- *diverged*: the loss or a weight is no finite number.
- *constant*: every utterance gets the same answer. Logits differ between utterances by less than
  MIN_SPREAD of what they differ by between speakers. A new model's differ by 0.1 (sigmoid) to 0.8,
  and do so at every step of those that learn; deep post-norm encoders at a learning rate of 0.03
  and more fall below 0.0001.
- *blown up*: at two looks in a row the loss is more than MAX_LOSS times that of guessing. It stays
  below 1.1 times in trainings that learn; at a learning rate of 1 it is 3 to 40 times, at 30 more
  than 10 times. At one look it may be a leap from which a training comes back.

The crops are of training utterances: on others, a model that has learnt them by heart may be wrong
with great confidence.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.config import TrialConfig
from speaker.data.batches import Batches
from speaker.data.pack import Pack
from speaker.training.evaluation import evaluating
from speaker.training.learner import Learner

CROPS = 64
LOOKS = (40, 20, 10)  # the fractions of the budget, one in so many, after which there is a look
MIN_SPREAD = 0.005
MAX_LOSS = 2.0
DIVERGED = "diverged: a loss or a weight is not finite any more"


class Signs(NamedTuple):
    """What a look sees."""

    loss: float  # nats, mean over crops
    spread: float  # of the logits, between utterances; 1 is what they differ by between speakers


class CollapseDetector:
    """Looks at a training now and then, and changes nothing of it."""

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor) -> None:
        """Choose the crops to look at: from all over the training rows, int64 (n,), on the CPU."""
        count = min(CROPS, len(rows))
        chosen = rows[torch.arange(count) * len(rows) // count]
        self._batches = Batches(config, pack, rows)
        self._rows = chosen.to(pack.frames.device)
        self._middle = torch.full((count,), 0.5, device=pack.frames.device)
        self._guessing = math.log(len(pack.speakers))
        self._steps = {max(1, config.steps // each) for each in LOOKS}

    def is_due(self, step: int) -> bool:
        """Tell whether to look after this step, whether or not there is an evaluation."""
        return step in self._steps

    def find(self, learner: Learner, was_blown_up: bool) -> tuple[str, bool]:
        """Return the sign of a collapse, in words, or nothing; and whether the loss is blown up,
        for the next look.

        This waits for the device.
        """
        loss, spread = self._look(learner)
        is_blown_up = loss > MAX_LOSS * self._guessing
        sign = ""
        if not (math.isfinite(loss) and learner.is_finite()):
            sign = DIVERGED
        elif is_blown_up:  # a small part of answers that large may be much
            if was_blown_up:
                sign = f"blown up: the loss is {loss:.4g}, that of guessing {self._guessing:.4g}"
        elif spread < MIN_SPREAD:
            sign = f"constant: every utterance gets the same answer, to {spread:.1g} of its size"
        return sign, is_blown_up

    @torch.inference_mode()
    def _look(self, learner: Learner) -> Signs:
        mels, lengths, labels = self._batches.gather(self._rows, self._middle, is_padded=True)
        with evaluating(learner.model):
            logits = learner.model(mels, lengths).float()
        between_speakers = _rms(logits - logits.mean(1, keepdim=True))
        between_utterances = _rms(logits - logits.mean(0))
        # Where even the speakers' logits are equal, so are the utterances'.
        spread = float(between_utterances) / max(float(between_speakers), 1e-12)
        return Signs(float(F.cross_entropy(logits, labels)), spread)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
