"""Randomness that is addressed, not streamed:
a resumed or repeated piece of work draws what it drew before.
"""

import hashlib

import torch
from torch import Tensor


def derive_seed(*address: int | str) -> int:
    """Return the 31-bit seed at an address such as (study seed, trial number, purpose).

    The same address gives the same seed in every process, version and machine; others are
    independent of it.
    """
    text = "/".join(map(str, address))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def generator(*address: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(*address)`."""
    return torch.Generator().manual_seed(derive_seed(*address))


def permutation(n: int, *address: int | str) -> Tensor:
    """Return a random order of 0..n-1, int64 (n,), on the CPU."""
    return torch.randperm(n, generator=generator(*address))


def uniform(n: int, *address: int | str) -> Tensor:
    """Return n numbers from [0, 1), float32 (n,), on the CPU."""
    return torch.rand(n, generator=generator(*address))
