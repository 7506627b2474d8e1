"""Where and how numbers are computed: a device, a precision and a number of threads, by the names a user gave."""

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch

from speaker.errors import UserError

T = TypeVar("T")
S = TypeVar("S")

CPU = torch.device("cpu")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
MOST_SHARDS = 4  # beyond that Python's own lock costs more than another shard brings
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Compute:
    """What a training computes with. The weights it learns are float32 whatever the precision of its products."""

    device: torch.device = CPU
    precision: torch.dtype = torch.float32
    threads: int = 1  # of this process, on a CPU
    share: float = 1.0  # of a GPU's memory that this process may take

    @property
    def shards(self) -> int:
        """Into how many parts a batch is cut, each computed by a thread of its own."""
        return min(self.threads, MOST_SHARDS) if self.device.type == "cpu" else 1

    @property
    def precision_name(self) -> str:
        """The precision by the name that a user gives it."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.precision)

    def describe(self) -> str:
        """Return it in words. On a CPU results are bit-equal only for the same number of threads."""
        if self.device.type == "cuda":
            return f"cuda: {torch.cuda.get_device_name(self.device)}, {self.precision_name}"
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.device.type == "cpu" else ""
        return f"{self.device.type}, {self.precision_name}{threads}"


class Crew:
    """Threads that work side by side, one for each shard. PyTorch leaves Python's lock while it computes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(size) if size > 1 else None

    def map(self, call: Callable[[T], S], items: Iterable[T]) -> list[S]:
        """Return what `call` gives for each item, in their order."""
        return list(self._pool.map(call, items)) if self._pool else [call(item) for item in items]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown()


def find_compute(device_name: str, precision_name: str, jobs: int = 1) -> Compute:
    """Return what one of `jobs` processes computes with. Raises UserError for what this machine does not have."""
    device = find_device(device_name)
    cores = usable_cores()
    if device.type == "cpu" and jobs > cores:
        raise UserError(f"--jobs must be at most the number of cores, {cores}, on a CPU, but got {jobs}; use fewer")
    return Compute(device, find_precision(precision_name, device), max(1, cores // jobs), 1 / jobs)


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the fastest there is. Raises UserError when it cannot be used here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    found = re.fullmatch(r"(cpu|cuda|mps)(?::([0-9]{1,3}))?", name)
    kind, number = found.groups() if found else ("", None)
    usable = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not found or int(number or 0) >= usable[kind]:
        here = ", ".join(kind for kind, count in usable.items() if count)
        raise UserError(f"--device must be one that this machine has ({here}), but got {name!r}; try --device auto")
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision called `name`; "auto" is bf16 where the hardware computes in it, else fp32."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_has_bf16() else torch.float32


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim(compute: Compute) -> None:
    """Settle this process on what it computes with: how many threads, and how memory is kept.

    Freed tensors stay with the process: giving them back and asking again, page by page, took a twentieth of a step.
    """
    torch.set_num_threads(max(1, compute.threads // compute.shards))  # of each shard
    if compute.device.type == "cuda":
        torch.cuda.set_device(compute.device)
        if compute.share < 1:
            torch.cuda.set_per_process_memory_fraction(compute.share)
    if compute.device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            tune = ctypes.CDLL(None).mallopt
            for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
                tune(option, value)


def _cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies in bf16: emulated, it would be slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
