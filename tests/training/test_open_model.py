"""Blocks other than the homework's: with buffers, with weights in the loss, and chosen by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.registry.served_files import export_program
from speaker.common.devices import Compute
from speaker.config import LOSSES, TrialConfig
from speaker.data.pack import Pack
from speaker.data.protocol import Protocol
from speaker.model import classifier
from speaker.model.padding import Padding
from speaker.model.poolings.mean import MeanPooling
from speaker.model.saved_model import load_model, save_model
from speaker.training import learner
from speaker.training.checkpoint import Checkpoint, identity
from speaker.training.losses.cross_entropy import CrossEntropy
from speaker.training.train import TrialResult, train
from tests.helpers import TINY

CONFIG = TINY.replace(pooling="attentive", steps=20, valid_every=5)
COMPUTES = [Compute(), Compute(threads=2), Compute(precision=torch.bfloat16)]


class NormalizedPooling(MeanPooling):
    """A pooling with running statistics, and a table that is computed and not saved."""

    def __init__(self, config: TrialConfig) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.d_model)
        self.register_buffer("table", torch.arange(config.d_model) / 100, persistent=False)

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        return self.norm(super().forward(x, padding)) + self.table.to(x.dtype)


class ScaledCrossEntropy(CrossEntropy):
    """A loss with a weight of its own."""

    def __init__(self, config: TrialConfig, n_speakers: int) -> None:
        super().__init__(config, n_speakers)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        return super().forward(logits * self.scale, labels, reduction) + 0.1 * self.scale.square()


@pytest.fixture(params=["attentive", "with buffers"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "with buffers":
        monkeypatch.setitem(classifier.POOLING_LAYERS, "attentive", NormalizedPooling)
    return str(request.param)


class Stop(BaseException):
    pass


class EveryStep(Checkpoint):
    def due(self) -> bool:
        return True


class StoppingBar:
    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, steps: int = 1) -> bool:
        self.at -= steps
        if self.at < 0:
            raise Stop
        return False


def run(
    pack: Pack, compute: Compute, checkpoint: Checkpoint | None = None, stop_at: int = 99
) -> TrialResult:
    bar = StoppingBar(stop_at)
    return train(CONFIG, pack, Protocol(), lambda *_: False, compute, checkpoint, bar)


@pytest.mark.parametrize("compute", COMPUTES, ids=Compute.describe)
def test_a_killed_training_resumes_exactly(
    block: str, compute: Compute, pack: Pack, tmp_path: Path
) -> None:
    whole = run(pack, compute)
    kept = EveryStep(tmp_path / "x", identity(CONFIG, pack, Protocol(), compute.precision))
    with pytest.raises(Stop):
        run(pack, compute, kept, stop_at=13)
    resumed = run(pack, compute, kept)
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(each, whole.weights[name]) for name, each in resumed.weights.items())
    buffers = {"pool.norm.running_mean", "pool.norm.running_var", "pool.norm.num_batches_tracked"}
    assert (buffers <= whole.weights.keys()) == (block == "with buffers")
    assert "pool.table" not in whole.weights
    if block == "with buffers":
        assert whole.weights["pool.norm.num_batches_tracked"] == whole.best_step
        assert bool(whole.weights["pool.norm.running_mean"].any())
        assert whole.weights["pool.norm.running_mean"].dtype == torch.float32


@pytest.mark.usefixtures("block")
def test_what_is_saved_loads_scores_and_exports_the_same(pack: Pack, tmp_path: Path) -> None:
    result = run(pack, Compute())
    save_model(tmp_path / "model", result.weights, CONFIG, pack.n_mels, pack.speakers, pack.digest)
    trained = load_model(tmp_path / "model")
    direct = classifier.SpeakerClassifier(CONFIG, pack.n_mels, len(pack.speakers))
    direct.load_state_dict(result.weights)
    mels, lengths = torch.randn(3, 17, pack.n_mels), torch.tensor([17, 9, 1])
    with torch.inference_mode():
        logits = trained.model(mels, lengths)
        assert torch.equal(logits, direct.eval()(mels, lengths))
    export_program(trained, tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    assert torch.allclose(program(mels, lengths), logits, atol=1e-5)


def test_a_losss_weights_learn_and_resume_and_are_not_the_models(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(learner.LOSS_LAYERS, "cross_entropy", ScaledCrossEntropy)
    compute = Compute(threads=2)
    kept = EveryStep(tmp_path / "x", identity(CONFIG, pack, Protocol(), compute.precision))
    with pytest.raises(Stop):
        run(pack, compute, kept, stop_at=13)
    resumed, whole = run(pack, compute, kept), run(pack, compute)
    assert not [name for name in whole.weights if "loss" in name or "scale" in name]
    assert all(torch.equal(each, whole.weights[name]) for name, each in resumed.weights.items())
    rows, _ = Protocol().split(pack)
    one = learner.Replica(CONFIG, pack)
    assert [name for name, _ in one.named_parameters() if name.startswith("loss.")] == [
        "loss.scale"
    ]
    scale = one.get_parameter("loss.scale")
    before = scale.detach().clone()
    logits, loss = one(*(pack.gather(rows[:4], 0, 20)), pack.labels[rows[:4]], "mean")
    loss.backward()
    assert torch.equal(before, scale)
    assert scale.grad is not None
    assert logits.dtype == torch.float32


def test_every_loss_has_a_name() -> None:
    assert tuple(learner.LOSS_LAYERS) == LOSSES
