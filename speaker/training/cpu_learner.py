"""How a CPU does a step: each thread computes the gradient of its shard of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from speaker.common.devices import Compute, ThreadPool
from speaker.common.seeding import derive_seed
from speaker.config import TrialConfig
from speaker.data.pack import Pack
from speaker.model.classifier import SpeakerClassifier
from speaker.training.learner import Learner
from speaker.training.schedule import learning_rate


class CpuLearner(Learner):
    """Learns on the CPU: each thread of a pool computes the gradient of its part of the batch."""

    def __init__(self, config: TrialConfig, pack: Pack, rows: Tensor, compute: Compute, pool: ThreadPool) -> None:
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
        batch = slice(index * self._config.batch_size, (index + 1) * self._config.batch_size)
        whole = self._drawn.whole[index]
        count = len(self._replicas)
        rows, places = self._drawn.rows[batch].tensor_split(count), self._drawn.places[batch].tensor_split(count)
        parts = zip(range(count), rows, places, strict=True)
        scores = self._pool.map(lambda part: self._learn(number, *part, whole), parts)
        self._gradient.copy_(self._gradients[0])
        for gradient in self._gradients[1:]:
            self._gradient.add_(gradient)
        self._adamw.param_groups[0]["lr"] = learning_rate(self._config, number)
        self._adamw.step()
        self._refresh()
        self._totals += torch.stack(scores).sum(0)

    def _learn(self, number: int, shard: int, rows: Tensor, places: Tensor, whole: bool) -> Tensor:
        """Leave a part's gradient behind; return its share of the batch's mean loss and accuracy."""
        model = self._replicas[shard]
        model.dropout.reseed(derive_seed(self._config.seed, "dropout", number, shard))
        self._gradients[shard].zero_()
        return learn(model, self._batches.gather(rows, places, whole), self._config.batch_size)


def learn(model: SpeakerClassifier, part: tuple[Tensor, Tensor | None, Tensor], batch_size: int) -> Tensor:
    """Add the gradient of a part's share of the batch's mean loss; return that share and its hits', (2,)."""
    mels, lengths, labels = part
    logits = model(mels, lengths).float()
    loss = F.cross_entropy(logits, labels, reduction="sum") / batch_size
    loss.backward()
    with torch.no_grad():
        return torch.stack((loss.detach(), (logits.argmax(1) == labels).sum() / batch_size))
