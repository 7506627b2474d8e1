"""A step on a CPU: each thread computes the gradient of its shard of the batch."""

import torch
from torch import Tensor

from speaker.common.devices import Compute, ThreadPool
from speaker.common.seeding import derive_seed
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.training.learner import Learner, Replica
from speaker.training.schedule import learning_rate


class CpuLearner(Learner):
    """Learns on the CPU, with one replica for each thread of a pool."""

    def __init__(
        self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute, pool: ThreadPool
    ) -> None:
        super().__init__(config, pack, rows, compute)
        self._pool = pool
        self._gradients = [torch.zeros_like(self._working) for _ in self._replicas]
        for replica, gradient in zip(self._replicas, self._gradients, strict=True):
            for parameter, view in zip(replica.parameters(), self._views(gradient), strict=True):
                parameter.grad = view
        self._adamw = self._optimizer(config.lr)
        self._epoch = -1

    def step(self, number: int) -> None:
        """Do a step, counted from 0."""
        epoch, index = divmod(number, self._batches.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self._batches.draw_epoch(epoch)
        size, count = self._config.batch_size, len(self._replicas)
        batch = slice(index * size, (index + 1) * size)
        rows = self._drawn.rows[batch].tensor_split(count)
        offsets = self._drawn.crop_offsets[batch].tensor_split(count)
        is_padded = self._drawn.is_padded[index]

        scores = self._pool.map(
            lambda shard: self._learn(number, shard, rows[shard], offsets[shard], is_padded),
            range(count),
        )
        self._gradient.copy_(self._gradients[0])
        for gradient in self._gradients[1:]:
            self._gradient.add_(gradient)
        self._adamw.param_groups[0]["lr"] = learning_rate(self._config, number)
        self._adamw.step()
        self._refresh()
        self._average_buffers()
        self._totals += torch.stack(scores).sum(0)

    def _learn(
        self, number: int, shard: int, rows: Tensor, offsets: Tensor, is_padded: bool
    ) -> Tensor:
        """Leave a shard's gradient behind; return its part of the batch's mean loss
        and accuracy, (2,).
        """
        replica = self._replicas[shard]
        replica.model.dropout.reseed(derive_seed(self._config.seed, "dropout", number, shard))
        self._gradients[shard].zero_()
        batch = self._batches.gather(rows, offsets, is_padded)
        return learn(replica, batch, self._config.batch_size)

    def _average_buffers(self) -> None:
        """Give all replicas the mean of their buffers; of whole numbers, such as counts,
        the first one's.
        """
        if len(self._replicas) == 1:
            return
        for first, *others in zip(*(replica.buffers() for replica in self._replicas), strict=True):
            if first.is_floating_point():
                mean = torch.stack([first, *others]).float().mean(0)
                first.copy_(mean)
            for other in others:
                other.copy_(first)


def learn(replica: Replica, batch: tuple[Tensor, Tensor | None, Tensor], batch_size: int) -> Tensor:
    """Add the gradient of a shard's part of the batch's mean loss;
    return that part and its hits', (2,).
    """
    mels, lengths, labels = batch
    logits, total = replica(mels, lengths, labels, "sum")
    loss = total / batch_size
    loss.backward()
    with torch.no_grad():
        hits = (logits.argmax(1) == labels).sum()
        return torch.stack((loss.detach(), hits / batch_size))
