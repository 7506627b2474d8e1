import pytest
import torch
from scipy.optimize import check_grad

from experiments.proposals import kernel
from experiments.proposals.curves import _rows, _surprise, estimate, fit
from experiments.proposals.kernel import JITTER, MAX_FITTED, _fitted, _loss, covariance_of
from tests.proposals.test_curves import UTTERANCES, draw_study


def test_the_gradient_is_that_of_the_loss() -> None:
    curves, _ = draw_study(0, 12)
    rows, values = _rows(curves)
    values = values - values.mean()
    center = torch.tensor([0.03, 0.01, 0.001, 0.0005, 0.7, 1.0, 1.0], dtype=torch.float64).log()
    at = (center + torch.linspace(-0.5, 0.5, 7, dtype=torch.float64)).numpy()

    def loss(raw: object) -> float:
        return _loss(torch.tensor(raw, dtype=torch.float64), center, rows, values)[0]

    def gradient(raw: object) -> object:
        return _loss(torch.tensor(raw, dtype=torch.float64), center, rows, values)[1]

    assert check_grad(loss, gradient, at) < 1e-3 * abs(loss(at))


def test_what_is_left_out_is_predicted_from_all_others() -> None:
    curves, _ = draw_study(1, 12)
    model = fit(curves)
    covariance, owners, values = model.factor @ model.factor.T, model.rows.owners, model.values
    squares = []
    for owner in owners.unique():
        others, last = owners != owner, int((owners == owner).nonzero()[-1])
        solved = torch.linalg.solve(covariance[others][:, others], covariance[others, last])
        variance = covariance[last, last] - covariance[others, last] @ solved
        squares.append(float((values[last] - solved @ values[others]).square() / variance))
    expected = max(1.0, sum(squares) / len(squares))
    found = _surprise(torch.cholesky_inverse(model.factor), owners, values)
    assert found == pytest.approx(expected, rel=1e-4)
    doubled = _surprise(torch.cholesky_inverse(model.factor), owners, 3 * values)
    assert doubled == pytest.approx(max(1.0, 9 * sum(squares) / len(squares)), rel=1e-4)


@pytest.mark.parametrize(("trials", "values"), [(10, 3), (60, 5), (61, 5), (9, 400), (1_000, 2)])
def test_a_kernel_is_fitted_to_whole_curves_of_evenly_chosen_trials(
    trials: int, values: int
) -> None:
    owners = torch.arange(trials).repeat_interleave(values)
    chosen = _fitted(owners)
    assert len(chosen) <= MAX_FITTED
    assert len(chosen) == len(set(chosen.tolist()))
    if len(owners) <= MAX_FITTED:
        assert chosen.tolist() == list(range(len(owners)))
        return
    seen = owners[chosen].unique()
    assert {0, trials - 1} <= set(seen.tolist())
    lasts = {owner * values + values - 1 for owner in seen.tolist()}
    assert lasts <= set(chosen.tolist())
    assert len(chosen) > 0.9 * min(MAX_FITTED, trials * min(values, 5))


def test_a_kernel_of_some_rows_predicts_as_one_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    curves, worths = draw_study(0, 60, stopped=False)
    whole = estimate(curves, UTTERANCES)
    monkeypatch.setattr(kernel, "MAX_FITTED", 150)
    some = estimate(curves, UTTERANCES)
    assert some != whole
    for one, other in zip(whole, some, strict=True):
        assert one.mean == pytest.approx(other.mean, abs=0.03)
        assert one.deviation == pytest.approx(other.deviation, rel=0.2)
    errors = [sum(abs(each.mean - worth) for each, worth in zip(found, worths, strict=True))
              for found in (whole, some)]  # fmt: skip
    assert errors[1] < 1.2 * errors[0]


def test_a_covariance_is_symmetric_and_greatest_with_itself() -> None:
    model = fit(draw_study(2, 10)[0])
    found = covariance_of(model.hyper, model.rows, model.rows)
    assert torch.allclose(found, found.T)
    torch.linalg.cholesky(found + JITTER * torch.eye(len(found), dtype=torch.float64))
