"""A closed-form head inside the loss: against a slow loop over transformers' own states, and finite differences."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from promptprior.backbone import Backbone, Site
from promptprior.backbone.chunking import backing_off, own_texts
from promptprior.heads.head import Readout
from promptprior.heads.linear import Linear
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import copies_of, loss_and_gradient
from promptprior.objectives.ridge_objective import RidgeObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import AdamW, Rate
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.sampling.draws import Pool, generator
from promptprior.tasks.sampling.meta_draws import FewShotDraws
from tests.backbone.tiny import TrueFloat64, tiny

LENGTH = 3


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def pool(task: int, classes: int, size: int = 12) -> Pool:
    """Random texts; class c has an answer of one, two or three tokens, and the longer begin with the shorter."""
    g = generator("pool", task)
    texts = [tuple(torch.randint(2, 96, (int(n),), generator=g).tolist()) for n in torch.randint(1, 9, (size,))]
    return Pool([Tokens(text, ((5, 0, 0)[: 1 + i % classes],)) for i, text in enumerate(texts)], task)


def batch(step: int = 0, copies: int = 1) -> Batch:
    torch.manual_seed(3)
    drawn = FewShotDraws([pool(0, 2), pool(1, 3)], units_per_step=2, support=2, query=2, seed=1).batch(step)
    return drawn.tile(copies)


MIDDLE = Site(1, "mean")


def objective(site: Site = MIDDLE, family: str = "llama", **options: int) -> RidgeObjective:
    backbone = tiny(family, **options)
    return RidgeObjective(backbone, Direct(LENGTH, backbone.width), site)


def params(backbone: Backbone, copies: int = 1) -> Params:
    g = torch.Generator().manual_seed(1)
    prompt = torch.randn(copies, LENGTH, backbone.width, generator=g, dtype=torch.float64) * backbone.scale
    return {
        "prompt": prompt,
        "log_strength": torch.linspace(-2, -1, copies, dtype=torch.float64),
        "log_scale": torch.linspace(1, 0, copies, dtype=torch.float64),
    }


def slow_losses(made: RidgeObjective, given: Params, drawn: Batch) -> Tensor:
    """Text by text through the model itself; ridge regression by its normal equations, the bias as a free column."""
    model, site = made.backbone.frozen.model, made.site
    reader = model.get_encoder() if made.backbone.card.is_encoder_decoder else model.base_model
    keys = [(int(drawn.copy_index[x]), int(drawn.task_index[x])) for x in range(drawn.texts)]
    answers = [tuple(drawn.target_ids[x, : drawn.target_lengths[x]].tolist()) for x in range(drawn.texts)]
    pooled = []
    for x, (copy, _) in enumerate(keys):
        text = made.backbone.frozen.embed(drawn.text_ids[x, : drawn.text_lengths[x]])
        embeds = torch.cat([given["prompt"][copy], text])[None]
        own = reader(inputs_embeds=embeds, output_hidden_states=True).hidden_states[site.layer][0, LENGTH:]
        pooled.append(own.mean(0) if site.pooling == "mean" else own[-1])
    losses = []
    for x, key in enumerate(keys):
        if drawn.weight[x] == 0:
            losses.append(pooled[x].new_zeros(()))
            continue
        taught = [y for y, other in enumerate(keys) if other == key and drawn.weight[y] == 0]
        classes = sorted({answers[y] for y in taught})
        shots = torch.stack([pooled[y] for y in taught])
        centre, spread = shots.mean(0), shots.std(0, correction=0)
        wide = torch.stack([torch.cat([(pooled[y] - centre) / spread / 32**0.5, shots.new_ones(1)]) for y in taught])
        pull = torch.diag(torch.cat([given["log_strength"][key[0]].exp().expand(32), shots.new_zeros(1)]))
        signs = shots.new_tensor([[1.0 if answers[y] == c else -1.0 for c in classes] for y in taught])
        solution = torch.linalg.solve(wide.t() @ wide + pull, wide.t() @ signs)
        scores = torch.cat([(pooled[x] - centre) / spread / 32**0.5, shots.new_ones(1)]) @ solution
        logs = (given["log_scale"][key[0]].exp() * scores).log_softmax(0)
        losses.append(-logs[classes.index(answers[x])])
    return torch.stack(losses)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("site", [Site(1, "mean"), Site(2, "last")])
def test_losses_and_gradients_equal_the_slow_loop(family: str, site: Site) -> None:
    made, drawn = objective(site, family), batch(copies=2)
    leaves = {name: value.requires_grad_() for name, value in params(made.backbone, 2).items()}
    slow, fast = slow_losses(made, leaves, drawn), made.losses(leaves, drawn)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    weights = torch.rand(len(slow), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.autograd.grad((slow * weights).sum(), list(leaves.values()))
    found = torch.autograd.grad((fast * weights).sum(), list(leaves.values()))
    for name, one, other in zip(leaves, found, expected, strict=True):
        assert (one - other).norm() <= 1e-7 * other.norm(), name
        assert other.norm() > 1e-4, name


def test_the_gradient_is_that_of_finite_differences() -> None:
    made, drawn = objective(), batch(copies=2)
    given = params(made.backbone, 2)
    _, gradient = loss_and_gradient(made, given, drawn)
    for name, value in given.items():
        g = torch.Generator().manual_seed(4)
        way = torch.randn(value.shape, generator=g, dtype=torch.float64)
        step = 1e-5 * (made.backbone.scale if name == "prompt" else 1.0)
        up, down = (loss_and_gradient(made, {**given, name: value + s * way}, drawn)[0] for s in (step, -step))
        torch.testing.assert_close(((up - down) / (2 * step)).sum(), (gradient[name] * way).sum(), rtol=1e-5, atol=1e-9)


def test_every_task_counts_once_whatever_its_classes() -> None:
    """The loss of a copy is the mean over units of the mean NLL of their queries."""
    made, drawn = objective(), batch()
    given = params(made.backbone)
    slow, scored = slow_losses(made, given, drawn), drawn.weight != 0
    means = [slow[scored & (drawn.task_index == task)].mean() for task in (0, 1)]
    assert [int((scored & (drawn.task_index == task)).sum()) for task in (0, 1)] == [4, 6]
    torch.testing.assert_close(loss_and_gradient(made, given, drawn)[0][0], torch.stack(means).mean())


def test_descent_of_the_prompt_alone_lowers_the_loss() -> None:
    """On the same units, strength and scale standing still: what falls is what the prompt does to states."""
    made, drawn = objective(), batch()
    state, losses = params(made.backbone), list[float]()
    rate = Rate((0.1,), made.backbone.scale, lr_multipliers={"log_strength": 0.0, "log_scale": 0.0})
    rule = Descent(AdamW(rate))
    moved = rule.init(state)
    for _ in range(15):
        moved, info = rule.step(moved, drawn, made)
        losses.append(float(info["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(moved.params[name], state[name]) for name in ("log_strength", "log_scale"))


@pytest.mark.parametrize("max_tokens", [1, 150, 10_000])
def test_units_are_never_cut(max_tokens: int) -> None:
    drawn = batch(copies=2)
    whole, made = objective(), objective(max_tokens=max_tokens)
    given = params(made.backbone, 2)
    pieces = list(made.split(given, drawn))
    assert len(pieces) == {1: 4, 10_000: 1}.get(max_tokens, 2)
    assert [size for piece in pieces for size in piece.unit_sizes] == [8, 12, 8, 12]
    (loss, gradient), (expected_loss, expected) = (loss_and_gradient(m, given, drawn) for m in (made, whole))
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-9, atol=1e-13)


def test_a_piece_that_does_not_fit_is_halved_between_units() -> None:
    drawn, sizes = batch(copies=2), []

    def run(piece: Batch) -> None:
        if len(piece.unit_sizes) > 1:
            raise MemoryError
        sizes.append(piece.texts)

    with pytest.warns(UserWarning, match="halved"):
        list(backing_off([drawn], run))
    assert sizes == [8, 12, 8, 12]

    def never(piece: Batch) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        list(backing_off([drawn.take(torch.arange(8))], never))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_processes_share_whole_units(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, shares = batch(copies=2), []
    monkeypatch.setattr("promptprior.backbone.chunking.processes", lambda: count)
    for rank in range(count):
        monkeypatch.setattr("promptprior.backbone.chunking.process_rank", lambda rank=rank: rank)
        shares.append(own_texts(drawn))
    assert torch.cat(shares).tolist() == list(range(40))
    assert all(len(share) in (0, 8, 12, 20, 40) for share in shares)


def test_the_head_of_a_target_is_the_one_that_was_trained_for() -> None:
    """`Linear` with the same site and strength gives the same log-probabilities, up to the scale that it chooses."""
    made, drawn = objective(), batch()
    given = params(made.backbone)
    first = drawn.take(torch.arange(8))  # the first unit
    with torch.no_grad():
        states, losses = made.text_states(given, first, [made.site]), made.losses(given, first)
    labels, support = first.target_lengths - first.target_lengths.min(), first.weight == 0
    labels = (labels > 0).long()
    strength = float(given["log_strength"].exp())
    head = Linear(layers=(1,), poolings=("mean",), strengths=(strength,))
    shots = Readout(torch.zeros(int(support.sum()), 2, dtype=torch.float64), states[support])
    fitted = head.fit(shots, labels[support], None)
    query = Readout(torch.zeros(int((~support).sum()), 2, dtype=torch.float64), states[~support])
    logs = -head.choice_nll(fitted, query)
    margin = (logs[:, 0] - logs[:, 1]) * (1 - 2 * labels[~support])  # of the right class, times the head's scale
    expected = -(torch.exp(losses[~support]) - 1).log()  # -log p = log(1 + exp(-margin))
    ratio = margin / expected
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0)


def test_what_it_cannot_read_is_said() -> None:
    made, drawn = objective(), batch()
    given = params(made.backbone)
    with pytest.raises(ValueError, match="has no support"):
        made.losses(given, replace(drawn, weight=torch.ones(drawn.rows)))
    choices = replace(drawn, text_index=torch.arange(drawn.rows) // 2).take(torch.arange(drawn.texts // 2))
    with pytest.raises(ValueError, match="needs one answer each"):
        made.losses(given, choices)
    assert copies_of(given) == 1
