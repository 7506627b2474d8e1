"""The least time a training step can take on a device: its operations and its bytes,
over what the device can do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from speaker.common.devices import Compute
from speaker.config import TrialConfig
from speaker.model.classifier import count_operations

SPEAKERS = 600


@dataclass(frozen=True)
class Roofline:
    """A step's least time, in seconds."""

    operations: float  # floating-point, a product and a sum each counted
    traffic: float  # bytes, where each operation reads and writes memory
    peak: float  # operations a second
    bandwidth: float  # bytes a second

    @classmethod
    def of(cls, config: TrialConfig, compute: Compute) -> "Roofline":
        """Return a point's roofline on a device, whose rates are measured."""
        traffic = count_traffic(config, fused_attention=compute.device.type != "cpu")
        return cls(count_operations(config), traffic, *measure_peaks(compute))

    @property
    def seconds(self) -> float:
        """The larger of both: products and memory can be busy at once."""
        return max(self.operations / self.peak, self.traffic / self.bandwidth)

    def describe(self) -> dict[str, float | str]:
        """Return it by name."""
        bound = (
            "operations" if self.operations / self.peak > self.traffic / self.bandwidth else "bytes"
        )
        return {
            "GFLOP": self.operations / 1e9,
            "GB": self.traffic / 1e9,
            "TFLOP/s": self.peak / 1e12,
            "GB/s": self.bandwidth / 1e9,
            "seconds": self.seconds,
            "bound by": bound,
        }


def count_traffic(config: TrialConfig, fused_attention: bool = False) -> float:
    """Return the bytes of a step in bf16 where no two operations are fused,
    but those of attention on a GPU.

    Each of a layer's results is written and read once forward, and its gradient written and read,
    and it read, once backward: eleven as wide as the model, three as wide as the feed-forward
    block, three of attention's shares.
    """
    return 5 * 2 * _count_results(config, fused_attention)


def count_memory(config: TrialConfig) -> float:
    """Return the bytes that a step keeps: a layer's results in bf16, and 20 for each weight,
    with its moments.
    """
    width = config.d_model
    layer = 4 * width * width + 2 * width * config.dim_feedforward
    return 2 * _count_results(config) + 20.0 * (
        config.num_layers * layer + width * (width + SPEAKERS)
    )


def _count_results(config: TrialConfig, fused_attention: bool = False) -> float:
    frames = config.segment_len
    # A fused kernel keeps them to itself.
    shares = 0 if fused_attention else 3 * config.nhead * frames
    numbers = 11 * config.d_model + 3 * config.dim_feedforward + shares
    return float(config.batch_size * frames * config.num_layers * numbers)


def measure_peaks(compute: Compute) -> tuple[float, float]:
    """Return what the device reaches: operations a second in a large product,
    bytes a second in a large copy.
    """
    torch.set_num_threads(compute.threads)
    size = 8192 if compute.device.type == "cuda" else 2048
    one = torch.randn(size, size, device=compute.device).to(compute.precision)
    large = torch.empty(1 << 28, dtype=torch.uint8, device=compute.device)
    target = torch.empty_like(large)
    return 2 * size**3 / _fastest(compute, lambda: one @ one), 2 * len(large) / _fastest(
        compute, lambda: target.copy_(large)
    )


def _fastest(compute: Compute, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        call()
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
