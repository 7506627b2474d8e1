"""The learning-rate schedule."""

import math

from speaker.config import TrialConfig


def learning_rate(config: TrialConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up from 0,
    then a cosine to 0 at config.steps.

    Source: transformers' get_cosine_schedule_with_warmup with half a cycle, as in the homework.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
