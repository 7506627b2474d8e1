"""What is peculiar to NVIDIA's cards: wheels that do not fit, graphs, shares of the memory,
cards that are lost.
"""

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from speaker.common.errors import DeviceLostError, UserError, first_line

WARM_UP = 3  # calls before a capture, in which libraries settle on their kernels
# Of a card's memory: what a process takes besides its tensors, by NVIDIA's libraries.
CONTEXT_BYTES = 600 << 20
MIN_BYTES = 512 << 20  # of a card's memory: what a training of the largest point needs
# Wheels for cards before Turing and drivers before CUDA 13.
OLD_CARDS = "https://download.pytorch.org/whl/cu126"
DEVICE_ERRORS = ("CUDA error", "CUDA driver error", "cuDNN error")  # the begin of a message
NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # in a message
HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES that hide all cards


def has_card() -> bool:
    """Tell whether this machine shows an NVIDIA card,
    whether or not the installed PyTorch can use it.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return False
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return driver or torch.cuda.is_available()


def find_fault(index: int) -> str:
    """Return why the installed PyTorch cannot compute on card `index`, and what to install;
    nothing if it can.

    Asks for what is there, and starts no kernel.
    """
    release = torch.__version__.partition("+")[0]
    if torch.version.cuda is None and torch.version.hip is None:
        install = f"pip install --force-reinstall torch=={release}"
        return f"torch {torch.__version__} is built without CUDA; {install}"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return "the environment variable CUDA_VISIBLE_DEVICES hides all cards; unset it"
    other_wheel = f"pip install --force-reinstall torch=={release} --index-url {OLD_CARDS}"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).partition(" Please ")[0].rstrip(".")
        return f"{reason}; update the driver, or {other_wheel}"
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        return f"there is no card {index}; this machine has {count}, counted from 0"
    kernels = torch.cuda.get_arch_list()
    capability = torch.cuda.get_device_capability(index)
    if torch.version.cuda and not any(_suits(kernel, capability) for kernel in kernels):
        name = torch.cuda.get_device_name(index)
        return (
            f"{name} is of compute capability {capability[0]}.{capability[1]}, for which torch "
            f"{torch.__version__} has no kernels ({', '.join(kernels)}); {other_wheel}"
        )
    return ""


def _suits(kernel: str, capability: tuple[int, int]) -> bool:
    """Tell whether a card runs kernels built for an architecture, such as sm_75,
    or compute_90 (of any later card).
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", kernel)
    if not found:
        return False
    kind, major, minor, exact = found.groups()
    built = int(major), int(minor)
    if exact == "a":
        return built == capability
    return (
        built <= capability
        if kind == "compute"
        else built[0] == capability[0] and built <= capability
    )


def use(device: torch.device, memory_fraction: float = 1.0) -> None:
    """Make a card this process's own, and bound what it takes of the card's memory."""
    torch.cuda.set_device(device)
    # cuDNN's attention makes a plan for each shape, and whole utterances have hundreds.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if memory_fraction < 1:
        torch.cuda.set_per_process_memory_fraction(memory_fraction, device)


def share_memory(device: torch.device, jobs: int) -> float:
    """Return the fraction of a card's memory that each of `jobs` processes may fill
    with tensors of its own.

    Call it when what they share is on the card. Raises UserError when too little is left for so
    many.
    """
    free, total = torch.cuda.mem_get_info(device)
    each = free / jobs - CONTEXT_BYTES
    if each < MIN_BYTES:
        most = int(free // (CONTEXT_BYTES + MIN_BYTES))
        advice = f"use at most {most}" if most else "free some, or use --device cpu"
        raise UserError(
            f"--jobs must leave each job {MIN_BYTES / 2**30:.1f} GiB of the card's memory besides "
            f"the {CONTEXT_BYTES / 2**30:.1f} GiB that CUDA takes, but {jobs} jobs share "
            f"{free / 2**30:.1f} GiB; {advice}"
        )
    return each / total


def capture(
    work: Callable[[], None],
    rewind: Callable[[], object],
    device: torch.device,
    other: torch.cuda.CUDAGraph | None,
) -> torch.cuda.CUDAGraph:
    """Do `work` a few times, then capture it once. Return the graph,
    which shares its memory with `other`'s.

    `rewind` is called before each. Raises what `work` raises; the stream that was current before is
    so again.
    """
    stream = _side_stream(device)
    before = torch.cuda.current_stream(device)
    stream.wait_stream(before)
    graph, pool = (
        torch.cuda.CUDAGraph(),
        torch.cuda.graph_pool_handle() if other is None else other.pool(),
    )
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                rewind()
                work()
            rewind()
            torch.cuda.synchronize(device)
            # What the warm-up left would lie idle beside the graph's own memory.
            torch.cuda.empty_cache()
            graph.capture_begin(pool=pool)
            try:
                work()
            except BaseException:
                # It only says that the capture failed, which hides the cause.
                with contextlib.suppress(RuntimeError):
                    _end_capture(graph, device, pool)
                raise
            _end_capture(graph, device, pool)
    finally:
        before.wait_stream(stream)
    return graph


def _end_capture(graph: torch.cuda.CUDAGraph, device: torch.device, pool: tuple[int, int]) -> None:
    """End a capture, and where that fails end its use of the memory pool, too,
    which PyTorch then leaves open.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
        raise


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for all captures of a process:
    cuBLAS keeps a workspace for each stream it has seen.
    """
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def noticing_loss(device: torch.device) -> Iterator[None]:
    """Raise DeviceLostError for an error after which this process can compute no more on a card."""
    try:
        yield
    except RuntimeError as error:
        if device.type == "cuda" and is_device_error(error) and not _answers(device):
            raise DeviceLostError(f"{device} was lost ({first_line(error)})") from error
        raise


def is_device_error(error: BaseException) -> bool:
    """Tell whether an error is a card's or a driver's, but not that memory is short."""
    is_theirs = isinstance(error, torch.AcceleratorError) or str(error).startswith(DEVICE_ERRORS)
    return is_theirs and not is_out_of_memory(error)


def _answers(device: torch.device) -> bool:
    """Tell whether a card still works for this process:
    after an assertion or a fault every call fails.
    """
    try:
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError):
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory is short, the machine's or a card's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def release_memory() -> None:
    """Give cached memory back to the card, if there is one and it still answers."""
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
