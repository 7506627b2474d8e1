"""What a run's best weights said of each validation utterance: a table among its artifacts."""

import contextlib
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.context import TrainingContext

FILE = "validation.csv"
HEAD = ("utterance", "frames", "speaker", "predicted")


@dataclass(frozen=True)
class Prediction:
    """A validation utterance: its file, number of frames, and speaker, the true and the predicted
    one.
    """

    utterance: str
    frames: int
    speaker: str
    predicted: str

    @property
    def is_right(self) -> bool:
        """Whether the predicted speaker is the true one."""
        return self.predicted == self.speaker


def to_csv(context: TrainingContext, labels: Sequence[int]) -> str:
    """Return the table of the labels that a context's validation utterances were given.

    Raises ValueError where there is not one label an utterance.
    """
    speakers = context.pack.speakers
    _, rows = context.protocol.split(context.pack)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for row, label in zip(rows.tolist(), labels, strict=True):
        each = context.corpus.utterances[row]
        true = speakers[int(context.pack.labels[row])]
        writer.writerow((each.feature_path, each.frames, true, speakers[label]))
    return text.getvalue()


def from_csv(text: str) -> list[Prediction]:
    """Return the lines of a table; nothing of other text."""
    with contextlib.suppress(csv.Error, ValueError):
        head, *lines = csv.reader(io.StringIO(text), strict=True)
        if tuple(head) == HEAD:
            return [
                Prediction(utterance, int(frames), speaker, predicted)
                for utterance, frames, speaker, predicted in lines
            ]
    return []
