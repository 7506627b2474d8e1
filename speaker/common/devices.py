"""Where and how numbers are computed: a device, a precision and a number of threads,
by the names a user gave.
"""

import contextlib
import ctypes
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import torch

from speaker.common import cuda
from speaker.common.errors import UserError

T = TypeVar("T")
S = TypeVar("S")

CPU = torch.device("cpu")
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MAX_SHARDS = 4  # beyond that Python's own lock costs more than another shard brings
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Compute:
    """What a training computes with.

    The weights it learns are float32 whatever the precision of its products.
    """

    device: torch.device = CPU  # a GPU always has its index
    precision: torch.dtype = torch.float32
    threads: int = 1  # of this process, on a CPU
    # Of a GPU's memory: what this process may fill with tensors of its own.
    memory_fraction: float = 1.0
    graph: bool = False  # whether a step is captured as a graph, on a GPU
    # Whether no device was asked for, so that the CPU may take a GPU's place.
    is_automatic: bool = False
    # Why this is less than the machine seemed to offer, in the order it was found.
    fallbacks: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """Into how many parts a batch is cut, each computed by a thread of its own."""
        return min(self.threads, MAX_SHARDS) if self.device.type == "cpu" else 1

    @property
    def precision_name(self) -> str:
        """The precision by the name that a user gives it."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.precision)

    def describe(self) -> str:
        """Return the device and what decides its numbers, for people and for the tag of a run.

        On a CPU results are bit-equal only for the same number of threads.
        """
        if self.device.type == "cpu":
            return f"cpu, {self.precision_name}, {self.threads} thread{'s' * (self.threads > 1)}"
        if self.device.type != "cuda":
            return f"{self.device}, {self.precision_name}"
        has_tf32 = self.precision == torch.float32 and torch.cuda.get_device_capability(
            self.device
        ) >= (8, 0)
        uses = " in full" if torch.get_float32_matmul_precision() == "highest" else " by TF32"
        name = torch.cuda.get_device_name(self.device)
        return f"{self.device} {name}, {self.precision_name}{uses * has_tf32}"

    def lesser(self) -> Iterator["Compute"]:
        """Yield what to try when this fails, each less demanding than the one before."""
        if self.device.type == "cpu":
            return
        if self.graph:
            yield replace(self, graph=False)
        if self.precision != torch.float32:
            yield replace(self, graph=False, precision=torch.float32)
        if self.is_automatic:
            precision = find_precision("auto" if self.precision != torch.float32 else "fp32", CPU)
            yield replace(self, graph=False, device=CPU, precision=precision)


class ThreadPool:
    """Threads that work side by side, one for each shard.

    PyTorch leaves Python's lock while it computes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(size) if size > 1 else None

    def map(self, call: Callable[[T], S], items: Iterable[T]) -> list[S]:
        """Return what `call` gives for each item, in their order."""
        return list(self._pool.map(call, items)) if self._pool else [call(item) for item in items]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._pool:
            self._pool.shutdown()


def find_compute(device_name: str, precision_name: str, jobs: int = 1) -> Compute:
    """Return what one of `jobs` processes computes with.

    Raises UserError for what this machine does not have.
    """
    device, fallback = find_device(device_name)
    try:
        validate_jobs(device, jobs)
        precision = find_precision(precision_name, device)
    except UserError as error:
        raise UserError(f"{error}; {fallback}" if fallback else str(error)) from None
    return Compute(
        device,
        precision,
        max(1, usable_cores() // jobs),
        graph=device.type == "cuda",
        is_automatic=device_name == "auto",
        fallbacks=(fallback,) if fallback else (),
    )


def validate_jobs(device: torch.device, jobs: int) -> None:
    """Raise UserError when a CPU has fewer cores than there are processes to compute on it."""
    cores = usable_cores()
    if device.type == "cpu" and jobs > cores:
        raise UserError(
            f"--jobs must be at most the number of cores, {cores}, on a CPU, but got {jobs}; use "
            "fewer"
        )


def find_device(name: str) -> tuple[torch.device, str]:
    """Return the device called `name`, and for "auto", the fastest there is,
    why not a GPU that is there.

    Raises UserError when it cannot be used here.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        other = torch.device("mps", 0) if has_mps else CPU
        if not cuda.has_card():
            return other, ""
        # PyTorch's own words for what is said here.
        warnings.filterwarnings("ignore", "CUDA initialization")
        fault = cuda.find_fault(0)
        return (
            (other, f"the NVIDIA card is not used: {fault}")
            if fault
            else (torch.device("cuda", 0), "")
        )
    found = re.fullmatch(r"(cpu|cuda|mps)(?::([0-9]{1,3}))?", name)
    kind, number = (found[1], int(found[2] or 0)) if found else ("", 0)
    if kind == "cuda":
        fault = cuda.find_fault(number)
    elif kind == "cpu" or (kind == "mps" and has_mps):
        fault = f"there is only one {kind}" if number else ""
    else:
        fault = "this machine has none" if found else "devices are cpu, cuda, cuda:N and mps"
    if fault:
        raise UserError(
            f"--device must be one that can be used here, but got {name!r}: {fault}; or use "
            "--device auto"
        )
    return (CPU if kind == "cpu" else torch.device(kind, number)), ""


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision called `name`; "auto" is the fastest that the hardware computes in.

    That is bf16, else on a CUDA device fp16, else fp32. Raises UserError for one that the device
    lacks.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    has_bf16 = capability >= (8, 0) or (device.type == "cpu" and _cpu_has_bf16())
    # The cards between are slower in it than in fp32.
    has_fp16 = capability >= (7, 0) or capability == (6, 0)
    if name == "auto":
        return torch.bfloat16 if has_bf16 else torch.float16 if has_fp16 else torch.float32
    if name == "bf16" and device.type == "cuda" and not has_bf16:
        raise UserError(
            f"--precision bf16 needs a card of compute capability 8.0 or more, but {device} has "
            f"{capability[0]}.{capability[1]}; use fp16 or fp32"
        )
    if name == "fp16" and device.type != "cuda":
        raise UserError(
            f"--precision fp16 is for CUDA devices, but the device is {device}; use bf16 or fp32"
        )
    return PRECISIONS[name]


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_process(compute: Compute) -> None:
    """Settle this process on what it computes with: how many threads, and how memory is kept.

    Freed tensors stay with the process: giving them back and asking again, page by page, took a
    twentieth of a step.
    """
    torch.set_num_threads(max(1, compute.threads // compute.shards))  # of each shard
    if compute.device.type == "cuda":
        cuda.use(compute.device, compute.memory_fraction)
    if compute.device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            tune = ctypes.CDLL(None).mallopt
            for option, value in (
                (M_MMAP_THRESHOLD, 32 << 20),
                (M_TRIM_THRESHOLD, 2**31 - 1),
                (M_TOP_PAD, 64 << 20),
            ):
                tune(option, value)


def _cpu_has_bf16() -> bool:
    """Tell whether the processor multiplies in bf16: emulated, it would be slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
