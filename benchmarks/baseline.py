"""The homework's training loop, as its sample code does it:
what our speed and accuracy are measured against.

Written anew from the design's facts: a `torch.load` for each utterance, worker processes, crops
padded by a collate function, PyTorch's sequence-first encoder layers, AdamW with a LambdaLR, two
`.item()` each step. Only what is not the loop's is left out: the progress bar, and saving the best
model to disk.
"""

import json
import math
import random
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from speaker.config import TrialConfig
from speaker.model.classifier import ACTIVATION_LAYERS

Example = tuple[Tensor, Tensor]


class Utterances(Dataset[Example]):
    """All labelled utterances of a corpus as files; each access reads and crops one at random."""

    def __init__(self, folder: Path, segment_len: int) -> None:
        self.folder, self.segment_len = folder, segment_len
        ids = json.loads((folder / "mapping.json").read_text())["speaker2id"]
        speakers = json.loads((folder / "metadata.json").read_text())["speakers"]
        self.speakers = len(ids)
        self.entries = [
            (entry["feature_path"], ids[name]) for name in speakers for entry in speakers[name]
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        path, speaker = self.entries[index]
        mel = torch.load(self.folder / path)
        if len(mel) > self.segment_len:
            start = random.randint(0, len(mel) - self.segment_len)  # noqa: S311  # crops, not secrets
            mel = mel[start : start + self.segment_len]
        return mel.float(), torch.tensor([speaker])


def collate(batch: list[Example]) -> Example:
    """Pad a batch's crops with the homework's -20."""
    mels, speakers = zip(*batch, strict=True)
    return pad_sequence(list(mels), batch_first=True, padding_value=-20), torch.cat(speakers)


def load(
    data: Dataset[Example], config: TrialConfig, workers: int, shuffle: bool
) -> DataLoader[Example]:
    """Return the homework's loader: shuffled, the last partial batch dropped,
    pinned where there is a GPU.
    """
    return DataLoader(
        data, config.batch_size, shuffle, num_workers=workers, drop_last=True, collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


class Classifier(nn.Module):
    """The sample code's model, with the number of layers and the activation
    as the student edited them.
    """

    def __init__(self, config: TrialConfig, speakers: int) -> None:
        super().__init__()
        width = config.d_model
        self.prenet = nn.Linear(40, width)
        layers = (
            nn.TransformerEncoderLayer(width, config.nhead, config.dim_feedforward, config.dropout)
            for _ in range(config.num_layers)
        )
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(width, width),
            ACTIVATION_LAYERS[config.activation](),
            nn.Linear(width, speakers),
        )

    def forward(self, mels: Tensor) -> Tensor:
        """Return logits (B, speakers) for mels (B, T, 40), padding heard like speech."""
        x = self.encoder(self.prenet(mels).permute(1, 0, 2))
        return self.head(x.transpose(0, 1).mean(1))


class Homework:
    """One training by the homework's loop, a step at a time."""

    def __init__(
        self,
        config: TrialConfig,
        folder: Path,
        rows: Tensor | None,
        device: torch.device,
        workers: int,
    ) -> None:
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        self._data = Utterances(folder, config.segment_len)
        self._config, self._device, self._workers = config, device, workers
        chosen = Subset(self._data, rows.tolist()) if rows is not None else self._data
        self._loader = load(chosen, config, workers, shuffle=True)
        self._batches = iter(self._loader)
        self.model = Classifier(config, self._data.speakers).to(device)
        self._criterion = nn.CrossEntropyLoss()
        self._adamw = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, self._rate)

    def fetch(self) -> Example:
        """Return the next batch, of the next epoch where this one is at its end."""
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            return next(self._batches)

    def forward(self, batch: Example) -> tuple[Tensor, float, float]:
        """Return a batch's loss, and its loss and accuracy as numbers."""
        mels, labels = (part.to(self._device) for part in batch)
        logits = self.model(mels)
        loss = self._criterion(logits, labels)
        return loss, loss.item(), (logits.argmax(1) == labels).float().mean().item()

    def update(self) -> None:
        """Let the optimizer and the schedule do their step, and clear the gradients."""
        self._adamw.step()
        self._schedule.step()
        self._adamw.zero_grad()

    def step(self) -> None:
        """Do a step."""
        loss, _, _ = self.forward(self.fetch())
        loss.backward()
        self.update()

    def validate(self) -> Generator[int, None, None]:
        """Score crops as the homework does its validation part, over and over;
        yield each batch's size when done.
        """
        self.model.eval()
        try:
            while True:
                for batch in load(self._data, self._config, self._workers, shuffle=False):
                    with torch.no_grad():
                        self.forward(batch)
                    yield len(batch[1])
        finally:
            self.model.train()

    def _rate(self, step: int) -> float:
        config = self._config
        if step < config.warmup_steps:
            return step / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def accuracy_whole(model: Classifier, folder: Path, rows: Tensor) -> float:
    """Return the accuracy over some whole utterances, one at a time,
    as the homework predicts its test utterances.
    """
    data = Utterances(folder, 1 << 30)
    device = next(model.parameters()).device
    model.eval()
    hits = 0
    for row in rows.tolist():
        mel, label = data[row]
        hits += int(model(mel[None].to(device)).argmax()) == int(label)
    return hits / len(rows)
