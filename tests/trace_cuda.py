"""Traces what a CUDA device runs, by tensors with a device and a shape and no data:
`python -m tests.trace_cuda`.

On a CPU build of PyTorch that works for all that has no gradients; a host read or a mix of devices
raises. Training is traced with its gradients on a CPU's tensors, to add up its memory. It prints
what it found.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from experiments.proposals.space import HOMEWORK
from speaker.config import HOMEWORK_BASELINE, TrialConfig
from speaker.data.pack import Pack
from speaker.model.classifier import SpeakerClassifier
from speaker.training.evaluation import MAX_FRAMES
from tests.helpers import LAYERS
from tests.imitation import AsOnGpu, Memory, Watch

LONGEST, MEDIAN = 7_193, 541  # frames of the homework's training utterances
FRAMES = 36_000_000  # of all of them
CUDA = torch.device("cuda", 0)
MAX_BYTES = 12e9
PRECISIONS = (torch.bfloat16, torch.float16, torch.float32)


def shapes() -> list[TrialConfig]:
    """Return a point of the space for each shape, of which an activation is no part."""
    return [point for point in HOMEWORK.points(HOMEWORK_BASELINE) if point.activation == "relu"]


def put(model: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return parameters like a model's on a device."""
    return {
        name: torch.empty(value.shape, device=device, dtype=dtype)
        for name, value in model.named_parameters()
    }


def build(config: TrialConfig) -> SpeakerClassifier:
    with torch.device("meta"):
        model = SpeakerClassifier(config, 40, 600)
    model.dropout.for_cpu = False
    return model


def packed(dtype: torch.dtype) -> Pack:
    """Return the homework's training utterances on the device; in float32 they stay float16 there."""
    offsets, lengths, labels = (
        torch.empty(56_666, dtype=torch.int64, device=CUDA) for _ in range(3)
    )
    frames = torch.empty(
        FRAMES, 40, dtype=dtype if dtype.itemsize == 2 else torch.float16, device=CUDA
    )
    return Pack(Path(), frames, offsets, lengths, labels, ("",) * 600, "", 91, LONGEST)


def batches() -> Iterator[tuple[int, int, bool]]:
    """Yield batches of an evaluation: (utterances, frames of each, whether some are padded)."""
    for width, is_padded in ((128, False), (MEDIAN, True), (LONGEST, False)):
        yield MAX_FRAMES["cuda"] // width, width, is_padded


@torch.no_grad()
def evaluate(config: TrialConfig, dtype: torch.dtype, pack: Pack) -> None:
    """Score full batches of crops, of utterances of middle length with padding, and of the longest."""
    model = build(config).eval()
    weights = put(model, CUDA, dtype)
    for count, width, is_padded in batches():
        rows = torch.empty(count, dtype=torch.int64, device=CUDA)
        with AsOnGpu(traced=True) as gpu, Watch():
            mels, lengths = pack.gather(rows, torch.zeros_like(rows), width, is_padded)
            logits = functional_call(model, weights, (mels, lengths))
        assert logits.device == CUDA
        assert logits.shape == (count, 600)
        fits_flash = (
            not is_padded and dtype != torch.float32 and config.d_model // config.nhead <= 256
        )
        assert set(gpu.attentions) == {"flash" if fits_flash else "memory-efficient"}


def learn(config: TrialConfig, dtype: torch.dtype) -> None:
    """Do a step's passes over the homework's batch, with masks:
    what a learner holds besides is added by the caller.
    """
    model = build(config).train()
    weights = {
        name: value.requires_grad_()
        for name, value in put(model, torch.device("cpu"), dtype).items()
    }
    mels = torch.empty(config.batch_size, config.segment_len, 40, dtype=dtype)
    lengths = torch.empty(config.batch_size, dtype=torch.int64)
    with AsOnGpu():
        loss = functional_call(model, weights, (mels, lengths)).float().square().mean()
        torch.autograd.grad(loss, list(weights.values()))


def main() -> None:
    """Trace all shapes in all precisions; fail where one cannot run, or needs too much memory."""
    began = time.perf_counter()
    worst = 0.0
    points = [point for point in shapes() if point.num_layers in LAYERS]
    for dtype in PRECISIONS:
        for point in points:
            with FakeTensorMode(), Memory() as evaluating:
                evaluate(point, dtype, packed(dtype))
            with FakeTensorMode(), Memory() as learning:
                if dtype != torch.float16:  # as much as in bfloat16
                    learn(point, dtype)
            parameters = sum(value.numel() for value in build(point).parameters())
            # Weights, gradient and moments in float32, and a copy to compute with.
            held = 20 * parameters
            pack = FRAMES * 80
            most = max(evaluating.peak + held, learning.peak + held + pack)
            assert most < MAX_BYTES, f"{point.label()} in {dtype} needs {most / 1e9:.1f} GB"
            worst = max(worst, most)
    seconds = time.perf_counter() - began
    print(
        f"traced {len(points)} shapes in {len(PRECISIONS)} precisions in {seconds:.0f} s; at most "
        f"{worst / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()
