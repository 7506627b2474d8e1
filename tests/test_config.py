import json

import pytest

from speaker.common.errors import UserError
from speaker.config import ADDED_LATER, HOMEWORK_BASELINE, HOMEWORK_EDITED, TrialConfig


def test_homework_points() -> None:
    fields = HOMEWORK_BASELINE.to_dict()
    assert fields == {
        "d_model": 80, "nhead": 2, "num_layers": 1, "activation": "sigmoid", "dim_feedforward": 256, "dropout": 0.1,
        "norm_first": False, "lr": 1e-3, "weight_decay": 0.01, "batch_size": 32, "segment_len": 128, "steps": 70_000,
        "warmup_steps": 1_000, "valid_every": 2_000, "seed": 0,
        "encoder": "transformer", "pooling": "mean", "loss": "cross_entropy",
    }  # fmt: skip
    changed = {
        name: value for name, value in HOMEWORK_EDITED.to_dict().items() if value != fields[name]
    }
    assert changed == {"d_model": 512, "nhead": 16, "num_layers": 6, "activation": "relu"}


def test_an_indivisible_width_names_the_legal_heads() -> None:
    with pytest.raises(
        UserError,
        match=r"got d_model=80, nhead=32; choose nhead from 1, 2, 4, 5, 8, 10, 16, 20, 40, 80",
    ):
        TrialConfig(d_model=80, nhead=32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 0), ("nhead", -1), ("num_layers", 0), ("activation", "cube"), ("dropout", 1.0), ("dropout", -0.1),
        ("lr", 0.0), ("lr", float("nan")), ("lr", float("inf")), ("weight_decay", -1.0), ("batch_size", 0),
        ("segment_len", 0), ("steps", 0), ("warmup_steps", 70_001), ("valid_every", 0), ("seed", -1), ("seed", 2**31),
        ("d_model", 80.0), ("nhead", True), ("lr", "fast"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        HOMEWORK_BASELINE.replace(**{field: value})


def test_json_both_ways() -> None:
    config = HOMEWORK_EDITED.replace(seed=7)
    assert TrialConfig.from_dict(json.loads(config.to_json())) == config
    for broken in ({}, {**config.to_dict(), "more": 1}):
        with pytest.raises(UserError, match="exactly the fields"):
            TrialConfig.from_dict(broken)
    with pytest.raises(UserError, match="must be a JSON object, but is list"):
        TrialConfig.from_dict([])


def test_a_config_from_before_a_field_existed_means_what_it_meant() -> None:
    old = {
        name: value for name, value in HOMEWORK_EDITED.to_dict().items() if name not in ADDED_LATER
    }
    assert TrialConfig.from_dict(old) == HOMEWORK_EDITED
    assert HOMEWORK_BASELINE.fingerprint() == "48b09354d399"
    assert set(HOMEWORK_BASELINE.identity()) == set(old)
    attentive = HOMEWORK_BASELINE.replace(pooling="attentive")
    assert attentive.identity()["pooling"] == "attentive"
    assert attentive.fingerprint() != HOMEWORK_BASELINE.fingerprint()
    assert attentive.label() == "d80 h2 L1 sigmoid attentive"


def test_fingerprint_tells_points_apart() -> None:
    assert HOMEWORK_BASELINE.fingerprint() == TrialConfig().fingerprint()
    others = {HOMEWORK_BASELINE.replace(seed=seed).fingerprint() for seed in range(5)} | {
        HOMEWORK_EDITED.fingerprint()
    }
    assert len(others) == 6


def test_a_short_budget_shrinks_warm_up_and_interval() -> None:
    short = HOMEWORK_BASELINE.with_steps(300)
    assert (short.steps, short.warmup_steps, short.valid_every) == (300, 30, 60)
    assert HOMEWORK_BASELINE.with_steps(70_000) == HOMEWORK_BASELINE
    assert HOMEWORK_BASELINE.with_steps(1).valid_every == 1
