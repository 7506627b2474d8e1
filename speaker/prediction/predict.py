"""Test utterances to class probabilities, by one model or by the vote of several."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speaker.common.cuda import is_out_of_memory, noticing_loss, release_memory
from speaker.common.errors import UserError
from speaker.data.corpus import Corpus, Utterance, read_mels
from speaker.data.pack import PADDING, length_buckets
from speaker.data.protocol import Protocol
from speaker.data.split import split
from speaker.model.saved_model import TrainedModel
from speaker.training.evaluation import MAX_FRAMES, MAX_UTTERANCES

LONG_FRAMES = 10_000  # of one utterance: 100 s


@dataclass(frozen=True)
class Gain:
    """What a vote of several models gains on the validation part, by which they were chosen.

    Accuracies in [0, 1].
    """

    singles: tuple[float, ...]
    ensemble: float
    utterances: int

    def describe(self) -> str:
        """Return it in words."""
        best = max(self.singles)
        return (
            f"On the {self.utterances:,} validation utterances, by which the models were chosen: "
            f"best {best:.4f}, vote of {len(self.singles)} {self.ensemble:.4f}, a gain of "
            f"{100 * (self.ensemble - best):+.2f} points."
        )


def validate_match(trained: TrainedModel, corpus: Corpus) -> None:
    """Raise UserError unless the model knows this corpus's features and exactly its speakers."""
    if trained.n_mels != corpus.n_mels:
        raise UserError(
            f"model and corpus must have the same n_mels, but the model has {trained.n_mels} and "
            f"{corpus.folder} has {corpus.n_mels}; choose a model trained on such features"
        )
    if trained.speakers != corpus.speakers:
        shared = len(set(trained.speakers) & set(corpus.speakers))
        raise UserError(
            "model and corpus must have the same speakers under the same ids, but the model knows "
            f"{len(trained.speakers)}, {corpus.folder} has {len(corpus.speakers)}, and {shared} "
            "are in both; choose a model trained on this corpus"
        )


def warn_of_long(frames: Iterable[int]) -> None:
    """Say on stderr if utterances of these lengths take long: attention grows with their square."""
    long = [count for count in frames if count > LONG_FRAMES]
    if long:
        print(
            f"warning: {len(long):,} utterances have more than {LONG_FRAMES:,} frames, the longest "
            f"{max(long):,}; attention over them takes seconds to minutes each; to be quicker, "
            "predict excerpts",
            file=sys.stderr,
            flush=True,
        )


@torch.inference_mode()
def predict_probabilities(
    models: Sequence[TrainedModel],
    corpus: Corpus,
    utterances: Sequence[Utterance],
    device: torch.device,
    batch_size: int | None = None,
) -> Tensor:
    """Return each model's class probabilities, float32 (models, utterances, speakers) on the CPU.

    Each is of the whole utterance, padding masked; rows are in the order of `utterances`. At most
    `batch_size` utterances are in a batch, and as many frames as suit the device; fewer where its
    memory is too short for them.
    """
    warn_of_long(utterance.frames for utterance in utterances)
    result = torch.empty(len(models), len(utterances), len(corpus.speakers))
    lengths = torch.tensor([utterance.frames for utterance in utterances], dtype=torch.int64)
    bar = tqdm(total=len(utterances), desc="predicting", unit="utterance", disable=None)
    with bar, noticing_loss(device):
        networks = [trained.model.to(device) for trained in models]
        for rows, _ in length_buckets(
            lengths, MAX_FRAMES[device.type], batch_size or MAX_UTTERANCES
        ):
            mels = pad_sequence(
                [read_mels(corpus, utterances[row]) for row in rows.tolist()], True, PADDING
            )
            for number, network in enumerate(networks):
                result[number, rows] = _classify(network, mels, lengths[rows], device)
            bar.update(len(rows))
    return result


def _classify(network: nn.Module, mels: Tensor, lengths: Tensor, device: torch.device) -> Tensor:
    """Return the class probabilities of a batch, (B, speakers), on the CPU;
    by halves where memory is too short.
    """
    try:
        return network(mels.to(device), lengths.to(device)).float().softmax(1).cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(mels) == 1:
            raise UserError(
                f"an utterance of {mels.shape[1]:,} frames must fit into the memory of {device}, "
                "but does not; use --device cpu, or end what else uses it"
            ) from error
    release_memory()
    halves = zip(mels.tensor_split(2), lengths.tensor_split(2), strict=True)
    return torch.cat([_classify(network, *half, device) for half in halves])


def validation_gain(
    models: Sequence[TrainedModel],
    corpus: Corpus,
    digest: str,
    device: torch.device,
    protocol: Protocol,
) -> Gain:
    """Measure each model and their vote on the validation part of the corpus they were trained on.

    `digest` is that corpus's, as its pack has it. Raises UserError when a model was trained on
    another one, since it may have learnt what it would be measured on.
    """
    if any(trained.corpus_digest != digest for trained in models):
        raise UserError(
            "--ensemble measures its gain on the corpus that the models were trained on, but "
            f"{corpus.folder} is another; give that one, or predict with one --model"
        )
    _, valid = split(len(corpus.utterances), protocol.split_seed)
    utterances = [corpus.utterances[row] for row in valid.tolist()]
    labels = torch.tensor([utterance.speaker for utterance in utterances])
    probabilities = predict_probabilities(models, corpus, utterances, device)
    hits = (
        (torch.cat((probabilities, probabilities.mean(0, keepdim=True))).argmax(2) == labels)
        .double()
        .mean(1)
    )
    *singles, ensemble = hits.tolist()
    return Gain(tuple(singles), ensemble, len(utterances))
