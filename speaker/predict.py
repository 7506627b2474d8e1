"""Test utterances to a CSV: one speaker for each, from a whole utterance, in the order of testdata.json."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speaker.checkpoint import TrainedModel
from speaker.corpus import Corpus, read_mels
from speaker.errors import UserError
from speaker.evaluation import MAX_FRAMES
from speaker.files import write_atomically
from speaker.pack import PADDING, length_buckets

HEADER = ("Id", "Category")


def check_out(path: Path) -> None:
    """Raise UserError unless a file can be made at `path`."""
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out must be a file in a folder that is there, but got {str(path)!r}; make the folder first")


def check_match(trained: TrainedModel, corpus: Corpus) -> None:
    """Raise UserError unless the model hears this corpus's features and knows exactly its speakers."""
    if trained.n_mels != corpus.n_mels:
        raise UserError(
            f"model and corpus must have the same n_mels, but the model has {trained.n_mels} and {corpus.folder} has "
            f"{corpus.n_mels}; choose a model trained on such features"
        )
    if trained.speakers != corpus.speakers:
        shared = len(set(trained.speakers) & set(corpus.speakers))
        raise UserError(
            f"model and corpus must have the same speakers under the same ids, but the model knows "
            f"{len(trained.speakers)}, {corpus.folder} has {len(corpus.speakers)}, and {shared} are in both; choose a "
            "model trained on this corpus"
        )


@torch.inference_mode()
def predict_logits(trained: TrainedModel, corpus: Corpus, device: torch.device) -> Tensor:
    """Return logits float32 (test utterances, speakers) on the CPU, rows in the order of testdata.json."""
    model = trained.model.to(device)
    logits = torch.empty(len(corpus.test), len(trained.speakers))
    lengths = torch.tensor([utterance.frames for utterance in corpus.test], dtype=torch.int64)
    with tqdm(total=len(corpus.test), desc="predicting", unit="utterance", disable=None) as bar:
        for rows, _ in length_buckets(lengths, MAX_FRAMES[device.type]):
            mels = pad_sequence([read_mels(corpus, corpus.test[row]) for row in rows.tolist()], True, PADDING)
            logits[rows] = model(mels.to(device), lengths[rows].to(device)).float().cpu()
            bar.update(len(rows))
    return logits


def write_csv(path: Path, corpus: Corpus, speakers: list[str]) -> None:
    """Write `Id,Category` and a line for each test utterance, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((utterance.feature_path, name) for utterance, name in zip(corpus.test, speakers, strict=True))
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"--out must be a file that can be written, but {path} cannot be ({error.strerror})") from error
