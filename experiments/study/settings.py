"""What the user asked of a search."""

from dataclasses import dataclass

from experiments.proposals.presets import Preset
from experiments.proposals.space import Space
from speaker.config import TrialConfig


@dataclass(frozen=True)
class SearchSettings:
    """What the user asked of a search."""

    name: str
    space: Space
    base: TrialConfig
    seed: int
    sampler: str
    pruner: str
    trials: int
    timeout: float | None  # seconds
    presets: tuple[Preset, ...] = ()  # points that the study begins with
    preset: str = ""  # their name, where they are all that is asked for
    prune_presets: bool = False  # whether these may be stopped early, too
    is_race: bool = False  # whether presets that are behind on some seeds are left out of others
    confirms: str = ""  # the study whose best points these are
    above: str = ""  # that study's run
    patience: int | None = None  # trials in a row without a better answer
    budget: int | None = None  # training steps of the whole study
    rescue: bool = False  # whether a point that collapsed is tried once more: see rescue.py
