"""The one training function: a point and a pack in, a result out. It knows nothing of studies and runs."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from speaker.config import TrialConfig
from speaker.errors import UserError
from speaker.evaluation import ACCURACY_CROPS, ACCURACY_WHOLE, OBJECTIVE, Evaluator, Protocol
from speaker.model import SpeakerClassifier, count_parameters
from speaker.pack import Pack
from speaker.seeding import derive_seed, permutation, uniform

Metrics = dict[str, float]
Report = Callable[[int, Metrics], bool]
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class TrialResult:
    """How a training ended, and the best it reached. `best_step` is 0 when it never got a score."""

    state: State
    reason: str = ""  # why it was pruned or failed
    steps: int = 0  # trained
    best_step: int = 0
    best: Metrics = field(default_factory=dict)  # the metrics at best_step
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # at best_step, on the CPU
    parameters: int = 0
    seconds: float = 0.0

    def scores(self) -> tuple[float | None, float | None]:
        """Return the best accuracies, on whole utterances and on crops, in [0, 1]."""
        return self.best.get(ACCURACY_WHOLE), self.best.get(ACCURACY_CROPS)


def learning_rate(config: TrialConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up from 0, then a cosine to 0 at config.steps.

    Source: transformers' get_cosine_schedule_with_warmup with half a cycle, as in the homework.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def batches(config: TrialConfig, pack: Pack, rows: Tensor) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield (mels, lengths, labels) for ever: a new order and new crops each epoch, the last partial batch dropped.

    `rows` is int64 on the CPU. mels is (batch_size, T, n_mels), padded where an utterance is shorter than a segment;
    lengths is None where no utterance of the pack is.
    """
    size, device = config.batch_size, pack.frames.device
    width = min(config.segment_len, pack.longest)
    for epoch in itertools.count():
        order = rows[permutation(len(rows), config.seed, "order", epoch)].to(device)
        places = uniform(len(rows), config.seed, "crop", epoch).to(device)
        for start in range(0, len(rows) - size + 1, size):
            chosen = order[start : start + size]
            starts = pack.crop_starts(chosen, places[start : start + size], width)
            mels, lengths = pack.gather(chosen, starts, width)
            yield mels, None if pack.shortest >= width else lengths, pack.labels[chosen]


def check_batch(config: TrialConfig, pack: Pack, protocol: Protocol) -> None:
    """Raise UserError when a pack has too few training utterances for one batch."""
    rows, _ = protocol.split(pack)
    if len(rows) < config.batch_size:
        raise UserError(
            f"batch_size must be at most the number of training utterances, {len(rows)}, but got {config.batch_size}; "
            "use a larger corpus or a smaller batch"
        )


def train(
    config: TrialConfig,
    pack: Pack,
    protocol: Protocol,
    report: Report,
    bar: "tqdm[int] | None" = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrialResult:
    """Train one point on the device its pack lies on, and return the best of its evaluations by OBJECTIVE.

    `report(step, metrics)` hears of every evaluation, every `config.valid_every` steps and after the last, and
    answers whether to stop; before the last step the state is then "pruned". A training that diverges or runs out of
    memory has failed, with a reason. `bar` counts steps. Raises UserError for a pack too small; any other exception
    passes through.
    """
    check_batch(config, pack, protocol)
    try:
        return _train(config, pack, protocol, report, tqdm(disable=True) if bar is None else bar, clock)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = "out of memory: " + str(error).partition("\n")[0]
    if pack.frames.device.type == "cuda":
        torch.cuda.empty_cache()
    return TrialResult("failed", reason)


def _train(
    config: TrialConfig,
    pack: Pack,
    protocol: Protocol,
    report: Report,
    bar: "tqdm[int]",
    clock: Callable[[], float],
) -> TrialResult:
    device = pack.frames.device
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = SpeakerClassifier(config, pack.n_mels, len(pack.speakers)).to(device)
    torch.manual_seed(derive_seed(config.seed, "dropout"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=device.type != "mps"
    )
    train_rows, _ = protocol.split(pack)
    data = batches(config, pack, train_rows)
    evaluate = Evaluator(pack, protocol, clock)
    best_step, best, weights = 0, Metrics(), dict[str, Tensor]()
    state: State = "complete"
    reason = ""
    began = since = clock()
    last = 0  # step of the last evaluation
    totals = torch.zeros(2, device=device)  # loss and hits since then

    for step in range(1, config.steps + 1):
        rate = learning_rate(config, step - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mels, lengths, labels = next(data)
        logits = model(mels, lengths)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            totals += torch.stack((loss, (logits.argmax(1) == labels).float().mean()))
        if (
            bar.update()
        ):  # true when the bar was drawn, a few times a second: the only synchronisation between evaluations
            bar.set_postfix(loss=f"{float(loss.detach()):.2f}", accuracy=_percent(best), refresh=False)
        if step % config.valid_every and step < config.steps:
            continue

        train_loss, train_accuracy = (totals / (step - last)).tolist()  # waits for the device
        steps_per_s = (step - last) / max(clock() - since, 1e-9)
        validation = evaluate(model)
        if not (math.isfinite(train_loss) and math.isfinite(validation["valid/loss_whole"])):
            state, reason = "failed", f"diverged: a loss is not finite any more at step {step}"
            break
        metrics = {
            **validation,
            "train/loss": train_loss,
            "train/accuracy": train_accuracy,
            "train/lr": rate,
            "speed/steps_per_s": steps_per_s,
        }
        if not best or metrics[OBJECTIVE] > best[OBJECTIVE]:
            best_step, best = step, metrics
            weights = _copy(model)
        if report(step, metrics) and step < config.steps:
            state, reason = "pruned", f"stopped by the search at step {step}"
            break
        last, since = step, clock()
        totals.zero_()

    return TrialResult(state, reason, step, best_step, best, weights, count_parameters(model), clock() - began)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights to the CPU: state_dict() alone would go on changing with the model."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def _percent(best: Metrics) -> str:
    return f"{best[OBJECTIVE]:.1%}" if best else "-"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))
