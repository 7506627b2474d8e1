"""A step on a GPU: data, order and schedule lie there,
and the host only starts one captured CUDA graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from speaker.common.cuda import capture, is_out_of_memory, release_memory
from speaker.common.devices import Compute
from speaker.common.errors import first_line
from speaker.config import TrialConfig
from speaker.data.batches import Epoch
from speaker.data.pack import Pack
from speaker.training.learner import Learner
from speaker.training.loss_scale import LossScale
from speaker.training.metrics import LOSS_SCALE, SKIPPED_STEPS
from speaker.training.schedule import learning_rate


@dataclass(frozen=True)
class EpochPlan:
    """What each step of an epoch reads, on the device: a step's number selects its row of each."""

    # (steps, B * T), int32 or int64: the pack's frames in its crops, none past an utterance's end.
    frames: Tensor
    lengths: Tensor  # (steps, B), int64: how many of a crop's frames are not padding
    labels: Tensor  # (steps, B), int64
    rates: Tensor  # (steps,), float32: learning rates


class GpuLearner(Learner):
    """Learns on a GPU. Where no graph can be captured the same operations are started one by one.

    `fallback` says why there is no graph, where there should be one.
    """

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute) -> None:
        super().__init__(config, pack, rows, compute)
        self._pack = pack
        self.model.dropout.for_cpu = False
        self._parameters = list(self._replicas[0].parameters())
        self._slots = self._views(self._gradient)
        self._epoch, self._drawn = 0, self._batches.draw_epoch(0)
        self._plan = self._plan_epoch(0, self._drawn)
        # Of the step to do, in its epoch.
        self._number = torch.zeros(1, dtype=torch.int64, device=compute.device)
        self._rate = torch.zeros(1, device=compute.device)
        self._one = torch.ones((), device=compute.device)
        # 1 where a step's answer was right.
        self._hits = torch.zeros(config.batch_size, device=compute.device)
        self._adamw = self._optimizer(self._rate.view(()))
        self._loss_scale = (
            LossScale(self._adamw, self._gradient) if compute.precision == torch.float16 else None
        )
        # By whether a batch is padded, and needs masks.
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self.fallback = self._capture() if compute.graph else ""

    def step(self, number: int) -> None:
        """Do a step, counted from 0."""
        epoch, index = divmod(number, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._open_epoch(epoch, index)
        is_padded = self._drawn.is_padded[index]
        if self._graphs:
            self._graphs[is_padded].replay()
        else:
            self._work(is_padded)

    def diagnostics(self, steps: int) -> dict[str, float]:
        """Return the loss scale, and how many of `steps` steps were skipped since they overflowed,
        in float16.
        """
        if self._loss_scale is None:
            return {}
        return {
            LOSS_SCALE: float(self._loss_scale.scale),
            SKIPPED_STEPS: steps - float(self._count),
        }

    def state(self) -> dict[str, Tensor]:
        """Return all that the steps to come depend on, besides their numbers, on the CPU."""
        own = {name: tensor.to("cpu", copy=True) for name, tensor in self._own_state().items()}
        return {**super().state(), **own, self._random_key: self._random_state()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Resume from what `state` returned after `steps` steps.

        What a learner on another kind of device returned lacks some of it: its masks of dropout
        cannot be drawn here.
        """
        super().load(state, steps)
        for name, tensor in self._own_state().items():
            if name in state:
                tensor.copy_(state[name])
        if self._random_key in state:
            self._set_random_state(state[self._random_key])
        self._open_epoch(*divmod(steps, self._batches.steps_per_epoch))

    def close(self) -> None:
        """Give the graphs and their memory back, before the next trial captures its own."""
        self._graphs.clear()
        release_memory()

    def _own_state(self) -> dict[str, Tensor]:
        scale = self._loss_scale.state() if self._loss_scale else {}
        return {"count": self._count, **scale}

    def _work(self, is_padded: bool) -> None:
        """Do the step whose number the device holds.

        Nothing here reads a value back, or has a shape made of values.
        """
        plan, number, size = self._plan, self._number, self._config.batch_size
        frames = plan.frames.index_select(0, number).view(-1)
        mels = self._pack.frames.index_select(0, frames).view(size, -1, self._pack.n_mels)
        labels = plan.labels.index_select(0, number).view(-1)
        lengths = plan.lengths.index_select(0, number).view(-1) if is_padded else None

        logits, loss = self._replicas[0](mels, lengths, labels, "mean")
        factor = self._loss_scale.scale if self._loss_scale else self._one
        gradients = torch.autograd.grad(loss, self._parameters, factor)
        # One kernel, where adding them to zeros takes one each.
        torch._foreach_copy_(self._slots, gradients)
        with torch.no_grad():
            torch.eq(logits.argmax(1), labels, out=self._hits)
            torch._foreach_add_([self._totals[0], self._totals[1]], [loss, self._hits.mean()])

        torch.index_select(plan.rates, 0, number, out=self._rate)
        (self._loss_scale or self._adamw).step()
        self._refresh()
        number += 1

    def _plan_epoch(self, epoch: int, drawn: Epoch) -> EpochPlan:
        """Turn an epoch's crops into what each step reads."""
        steps, size, width = (
            self._batches.steps_per_epoch,
            self._config.batch_size,
            self._batches.width,
        )
        pack, rows, offsets = (
            self._pack,
            drawn.rows[: steps * size],
            drawn.crop_offsets[: steps * size],
        )
        starts = pack.crop_starts(rows, offsets, width)
        lengths = (pack.lengths[rows] - starts).clamp(max=width)
        within = torch.minimum(torch.arange(width, device=rows.device), lengths[:, None] - 1)
        frames = (pack.offsets[rows] + starts)[:, None] + within
        numbers = range(epoch * steps, (epoch + 1) * steps)
        rates = [learning_rate(self._config, min(number, self._config.steps)) for number in numbers]
        return EpochPlan(
            frames.to(torch.int32 if len(pack.frames) < 2**31 else torch.int64).view(steps, -1),
            lengths.view(steps, -1),
            pack.labels[rows].view(steps, -1),
            torch.tensor(rates, dtype=torch.float32, device=rows.device),
        )

    def _open_epoch(self, epoch: int, index: int) -> None:
        """Put what an epoch's steps read where the graphs look for it.

        Its `index`th step is the next.
        """
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self._batches.draw_epoch(epoch)
            plan = self._plan_epoch(epoch, self._drawn)
            for field in fields(plan):
                getattr(self._plan, field.name).copy_(getattr(plan, field.name))
        self._number.fill_(index)

    def _capture(self) -> str:
        """Capture a step for each kind of batch; return why that failed, or nothing.

        What it trained is undone.
        """
        before = self.state()
        try:
            for is_padded in sorted(self._batches.kinds):
                other = next(iter(self._graphs.values()), None)
                work = self._captured_work(is_padded)
                self._graphs[is_padded] = capture(work, self._number.zero_, self._device, other)
        except RuntimeError as error:
            self._graphs.clear()
            if is_out_of_memory(error):
                raise
            return first_line(error)
        finally:
            self._adamw.param_groups[0]["capturable"] = False
            self.load(before, 0)  # raises where the card is lost
        return ""

    def _captured_work(self, is_padded: bool) -> Callable[[], None]:
        def work() -> None:
            # AdamW refuses to be captured without this, and warns of it where it is not.
            self._adamw.param_groups[0]["capturable"] = torch.cuda.is_current_stream_capturing()
            self._work(is_padded)

        return work

    @property
    def _random_key(self) -> str:
        """Under which name a state holds the device's random numbers:
        those of another kind of device are of no use.
        """
        return f"random.{self._device.type}"

    def _random_state(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return (
            torch.mps.get_rng_state()
            if self._device.type == "mps"
            else torch.random.get_rng_state()
        )

    def _set_random_state(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        elif self._device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.random.set_rng_state(state)
