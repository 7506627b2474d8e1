"""Which utterances are trained on, and which validate."""

from torch import Tensor

from speaker.common.errors import UserError
from speaker.common.seeding import permutation


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split n utterances at random into train, int(0.9 * n) of them, and valid,
    the rest (the homework's rule).

    Returns two int64 tensors of row numbers, each in rising order. Raises UserError when a part
    would be empty.
    """
    cut = int(0.9 * n)
    if not 0 < cut < n:
        raise UserError(
            f"a corpus must have at least 2 labelled utterances to split, but has {n}; add some"
        )
    order = permutation(n, seed, "split")
    return order[:cut].sort().values, order[cut:].sort().values
