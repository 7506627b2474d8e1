"""How a GPU does a step: data, order and schedule lie there, and the host only starts one captured CUDA graph."""

from types import ModuleType

import torch
from torch import Tensor
from tqdm import tqdm

from speaker.config import TrialConfig
from speaker.devices import Compute
from speaker.learner import Learner, learn, learning_rate
from speaker.pack import Pack

WARM_UP = 3  # steps before a capture, in which libraries settle on their kernels


class DeviceLearner(Learner):
    """Learns on a GPU. Where no graph can be captured the same operations are started one by one.

    `reason` says why there is no graph.
    """

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute) -> None:
        super().__init__(config, pack, rows, compute)
        device = compute.device
        schedule = [learning_rate(config, step) for step in range(config.steps)]
        self._schedule = torch.tensor(schedule, dtype=torch.float32, device=device)
        self._rate = torch.zeros((), device=device)
        self._adamw = self._optimizer(self._rate, capturable=device.type == "cuda")
        self._number = torch.zeros((), dtype=torch.int64, device=device)  # of the step to do
        self._ramp = torch.arange(config.batch_size, device=device)
        self._epoch, self._drawn = 0, self._batches.draw_epoch(0)
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}  # by whether a batch is whole: others need masks
        self.reason = self._capture() if device.type == "cuda" else f"{device.type} has none"
        if device.type == "cuda" and self.reason:
            tqdm.write(f"no CUDA graph, so each operation is started by itself: {self.reason}")

    def step(self, number: int) -> None:
        """Do a step, counted from 0."""
        epoch, index = divmod(number, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, drawn = epoch, self._batches.draw_epoch(epoch)
            self._drawn.rows.copy_(drawn.rows)  # in place, where the graphs look
            self._drawn.places.copy_(drawn.places)
            self._drawn.whole[:] = drawn.whole
        whole = self._drawn.whole[index]
        if self._graphs:
            self._graphs[whole].replay()
        else:
            self._work(whole)

    def state(self) -> dict[str, Tensor]:
        """Return all that the steps to come depend on, besides their numbers, on the CPU."""
        return {**super().state(), "random": self._random().get_rng_state()}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from what `state` returned after `steps` steps."""
        super().load(state, steps)
        self._random().set_rng_state(state["random"])
        self._number.fill_(steps)

    def close(self) -> None:
        """Give the graphs and their memory back, before the next trial captures its own."""
        self._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _work(self, whole: bool) -> None:
        """Do the step whose number the device holds. Nothing here reads a value back."""
        index = self._number % self._batches.steps_per_epoch * self._config.batch_size + self._ramp
        part = self._batches.gather(self._drawn.rows[index], self._drawn.places[index], whole)
        self._gradients[0].zero_()
        self._totals += learn(self.model, part, self._config.batch_size)
        self._gradient.copy_(self._gradients[0])
        self._rate.copy_(self._schedule[self._number])
        self._adamw.step()
        self._refresh()
        self._number += 1

    def _capture(self) -> str:
        """Capture a step; return why that failed, or nothing. What the warm-up changed is undone."""
        before = self.state()
        try:
            for whole in sorted(set(self._batches.kinds)):
                self._graphs[whole] = self._capture_kind(whole)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._graphs.clear()
            return str(error).partition("\n")[0]
        finally:
            self.load(before, 0)
        return ""

    def _capture_kind(self, whole: bool) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._work(whole)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._number.zero_()
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._work(whole)
        return graph

    def _random(self) -> ModuleType:
        """Return the module that holds the state of the device's random numbers."""
        return torch.random if self._device.type == "cpu" else torch.get_device_module(self._device)
