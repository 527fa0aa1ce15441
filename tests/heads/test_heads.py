"""What every head promises, and the heads of votes, frequencies and mixtures."""

from dataclasses import fields

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from promptprior.heads.constant import Constant
from promptprior.heads.head import Head, Readout
from promptprior.heads.mixed import WEIGHTS, MixedHead
from promptprior.heads.nearest import Nearest
from promptprior.heads.registry import HEADS
from promptprior.heads.verbalizer import Verbalizer
from promptprior.notation import Tensor

from .test_linear import noise, shots


def answering(head: Head, params: dict[str, Tensor], readout: Readout) -> Readout:
    """The readout with the sites alone that the head asks for when it answers."""
    assert readout.states is not None
    used = list(head.used(params))
    return Readout(readout.nll, readout.states[:, used] if used else None)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("n", [3, 12])
def test_probabilities_are_normalised_and_params_are_float_tensors(name: str, n: int) -> None:
    head: Head = HEADS[name]()
    assert head.name == name
    sites = len(head.sites(4))
    shown, labels = shots(n, 3, max(sites, 1), 6)
    params = head.fit(shown, labels, None)
    assert all(value.is_floating_point() and value.isfinite().all() for value in params.values())
    used = head.used(params)
    assert list(used) == sorted(set(used))
    assert all(0 <= s < sites for s in used)
    nll = head.choice_nll(params, answering(head, params, shown))
    assert nll.shape == (n, 3)
    assert nll.dtype == torch.float64
    torch.testing.assert_close((-nll).exp().sum(1), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_plain_settings(name: str) -> None:
    head = HEADS[name]()
    assert HEADS[name](**{f.name: getattr(head, f.name) for f in fields(head)}) == head


def test_the_verbalizer_changes_no_ranking() -> None:
    shown, labels = shots(5, 3, 1, 4)
    head = Verbalizer()
    assert head.fit(shown, labels, None) == {}
    torch.testing.assert_close(head.choice_nll({}, shown), -torch.log_softmax(-shown.nll, dim=1))


def test_the_constant_is_the_first_of_the_most_frequent() -> None:
    shown = Readout(torch.zeros(5, 3, dtype=torch.float64))
    head = Constant()
    nll = head.choice_nll(head.fit(shown, torch.tensor([2, 1, 2, 1, 0]), None), shown)
    torch.testing.assert_close((-nll).exp(), torch.tensor([[2, 3, 3]] * 5).double() / 8)
    assert nll.argmin(1).tolist() == [1] * 5


def test_votes_are_those_of_scikit_learns_neighbours() -> None:
    shown, labels = shots(20, 2, 3, 8, signal=1.5)
    assert shown.states is not None
    head = Nearest(neighbours=(1, 3, 5), layers=(1, 2, 3), poolings=("mean",))
    centred = shown.states - shown.states.mean(0)

    def slow(states: Tensor, kept: list[int], query: Tensor, k: int) -> Tensor:
        found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(states[kept]).kneighbors(query[None])
        votes = torch.full((2,), 0.5, dtype=torch.float64)
        for distance, index in zip(found[0][0], found[1][0], strict=True):
            votes[labels[kept[index]]] += 1 - distance / 2
        return -(votes / votes.sum()).log()

    tried = {}
    for site in range(3):
        for k in head.neighbours:
            nll = [slow(centred[:, site], [j for j in range(20) if j != i], centred[i, site], k) for i in range(20)]
            tried[site, k] = float(torch.stack(nll).gather(1, labels[:, None]).mean())
    site, k = min(tried, key=lambda key: tried[key])
    params = head.fit(shown, labels, None)
    assert (head.used(params), int(params["k"])) == ((site,), k)
    queries = noise(4, 1, 8, seed=7)
    found = head.choice_nll(params, Readout(torch.zeros(4, 2, dtype=torch.float64), queries))
    expected = [slow(centred[:, site], list(range(20)), q[0] - shown.states[:, site].mean(0), k) for q in queries]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)


def test_the_mixture_weighs_by_what_is_held_out() -> None:
    shown, labels = shots(24, 3, 2, 8, signal=0.7)
    nll = shown.nll - 1.0 * torch.nn.functional.one_hot(labels, 3)
    shown = Readout(nll, shown.states)
    head = MixedHead()
    params = head.fit(shown, labels, None)
    of_texts = head.calibrated.fit_held_out(torch.log_softmax(-nll, dim=1), labels)[1]
    of_states = head.linear.fit_held_out(shown, labels)[1]
    assert of_states is not None
    likelihoods = []
    for weight in WEIGHTS.tolist():
        mixed = weight * (-of_states).exp() + (1 - weight) * (-of_texts).exp()
        likelihoods.append(float(mixed.gather(1, labels[:, None]).log().mean()))
    assert params["weight"] == WEIGHTS[likelihoods.index(max(likelihoods))]
    assert 0 < params["weight"] < 1

    answered = answering(head, params, shown)
    linear = {key[7:]: value for key, value in params.items() if key.startswith("linear.")}
    texts = {key[11:]: value for key, value in params.items() if key.startswith("calibrated.")}
    p = params["weight"] * (-head.linear.choice_nll(linear, answered)).exp()
    p = p + (1 - params["weight"]) * (-head.calibrated.choice_nll(texts, answered)).exp()
    torch.testing.assert_close((-head.choice_nll(params, answered)).exp(), p)
