"""Calibrated likelihoods against closed forms, scipy's optimiser, and fits that really leave a shot out."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from promptprior.heads.calibrated import Calibrated, fit_offsets, held_out_folds, template_ends
from promptprior.heads.head import Readout
from promptprior.notation import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def biased(n: int, choices: int, bias: float = 8.0) -> tuple[Tensor, Tensor]:
    """NLL of choices that know the label, behind a bias that hides it."""
    labels = torch.arange(n) % choices
    knows = 2 * torch.nn.functional.one_hot(labels, choices).double() + noise(n, choices)
    return 30 - 2 * knows + bias * torch.arange(choices), labels


def slow_fit(logs: Tensor, labels: Tensor, strength: float) -> Tensor:
    """Offsets and scale by scipy, from the formula."""
    x, y, k = logs.numpy(), labels.numpy(), logs.shape[1]

    def loss(theta: np.ndarray) -> float:
        table = theta[k] * x + theta[:k]
        log_sums = np.log(np.exp(table - table.max(1, keepdims=True)).sum(1)) + table.max(1)
        return float((log_sums - table[np.arange(len(y)), y]).sum() + strength / 2 * ((theta - start) ** 2).sum())

    start = np.array([0.0] * k + [1.0])
    return torch.tensor(minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x)


@pytest.mark.parametrize("choices", [2, 5])
@pytest.mark.parametrize("strength", [0.03, 1.0, 100.0])
def test_offsets_are_those_of_another_optimiser(choices: int, strength: float) -> None:
    nll, labels = biased(20, choices)
    logs = torch.log_softmax(-nll, dim=1)
    offset, scale = fit_offsets(logs, labels, torch.ones(1, 20, dtype=torch.float64), strength)
    expected = slow_fit(logs, labels, strength)
    torch.testing.assert_close(torch.cat([offset[0], scale]), expected, rtol=0, atol=2e-4)

    def objective(theta: Tensor) -> Tensor:
        table = torch.log_softmax(theta[-1] * logs + theta[:-1], dim=1)
        start = torch.tensor([0.0] * choices + [1.0])
        return strength / 2 * (theta - start).square().sum() - table.gather(1, labels[:, None]).sum()

    gradient = torch.autograd.functional.jacobian(objective, torch.cat([offset[0], scale]))
    assert gradient.abs().max() < 1e-8


def test_held_out_answers_are_those_of_fits_without_the_shot() -> None:
    nll, labels = biased(12, 3)
    logs = torch.log_softmax(-nll, dim=1)
    head = Calibrated()
    params, held_out = head.fit_held_out(logs, labels)
    tried = {}
    for strength in head.strengths:
        rows = []
        for i in range(12):
            kept = torch.arange(12) != i
            weights = torch.ones(1, 11, dtype=torch.float64)
            offset, scale = fit_offsets(logs[kept], labels[kept], weights, strength)
            rows.append(-torch.log_softmax(scale * logs[i] + offset[0], dim=0))
        tried[strength] = torch.stack(rows)
    best = min(tried, key=lambda s: float(tried[s].gather(1, labels[:, None]).mean()))
    torch.testing.assert_close(held_out, tried[best], rtol=0, atol=1e-8)
    offset, scale = fit_offsets(logs, labels, torch.ones(1, 12, dtype=torch.float64), best)
    torch.testing.assert_close((params["offset"], params["scale"]), (offset[0], scale), rtol=0, atol=1e-8)
    found = head.choice_nll(params, Readout(nll))
    torch.testing.assert_close(found, -torch.log_softmax(scale * logs + offset, dim=1))


@pytest.mark.parametrize("by", ["shots", "texts", "content_free"])
def test_a_bias_is_taken_away(by: str) -> None:
    bias = 2.0 if by == "texts" else 8.0  # a mean of probabilities cannot see far behind a strong one
    nll, labels = biased(60, 3, bias)
    readout, head = Readout(nll), Calibrated(by=by)
    empty = Readout(30 + bias * torch.arange(3).double()[None]) if by == "content_free" else None
    before = (nll.argmin(1) == labels).double().mean()
    params = head.fit(readout, labels, empty)
    after = (head.choice_nll(params, readout).argmin(1) == labels).double().mean()
    assert after > before + 0.1
    assert after > 0.7


def test_batch_and_contextual_calibration_are_their_formulas() -> None:
    nll, labels = biased(6, 3)
    p = torch.softmax(-nll, dim=1)
    by_texts = Calibrated(by="texts")
    found = by_texts.choice_nll(by_texts.fit(Readout(nll), labels, None), Readout(nll))
    ratio = p / p.mean(0)
    torch.testing.assert_close((-found).exp(), ratio / ratio.sum(1, keepdim=True))

    empty = noise(2, 3, seed=5).square()
    contextual = Calibrated(by="content_free")
    found = contextual.choice_nll(contextual.fit(Readout(nll), labels, Readout(empty)), Readout(nll))
    ratio = p / torch.softmax(-empty, dim=1).mean(0)
    torch.testing.assert_close((-found).exp(), ratio / ratio.sum(1, keepdim=True))


def test_the_template_is_what_all_texts_share() -> None:
    texts = ["Sentence: the film is fine\nTopic?", "Sentence: the bus is late\nTopic?"]
    head = Calibrated(by="content_free")
    assert template_ends(texts) == ("Sentence: the ", "\nTopic?")
    assert head.extra_texts(texts)[0] == "Sentence: the N/A\nTopic?"
    assert head.extra_texts(["good film", "bad bus"]) == ["N/A", "[MASK]"]  # nothing shared, and no empty text
    assert template_ends(["a b", "a b"]) == ("a b", "")
    assert template_ends(["x x", "x x x"]) == ("x ", "")  # beginning and end never overlap
    assert template_ends(["great stuff", "green stuff"]) == ("", " stuff")
    assert Calibrated().extra_texts(texts) == []


def test_folds_hold_out_each_shot_once_and_labels_evenly() -> None:
    labels = torch.tensor([0] * 8 + [1] * 4)
    each = held_out_folds(labels)
    assert (each.sum(0) == 1).all()
    assert (each.sum(1) == 1).all()
    many = torch.arange(600) % 3
    folds = held_out_folds(many)
    assert len(folds) == 32
    assert (folds.sum(0) == 1).all()
    for label in range(3):  # 200 shots of each
        assert set(folds[:, many == label].sum(1).tolist()) == {6, 7}
