"""MAML against unrolled autograd, central differences and closed forms.

Row weights are float32, so that thirds in float64 agree to about 1e-8.
"""

import gc
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.backbone.forward.reference import reference_losses
from promptprior.errors import SpecError, TrainingError
from promptprior.notation import Memory, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.rules import curvature
from promptprior.rules.curvature import conjugate_gradients, hessian_product
from promptprior.rules.inner import Inner, InnerAdam, InnerSgd
from promptprior.rules.maml import MULTIPLIER, Implicit, Maml
from promptprior.rules.optimiser import AdamW, Rate, Sgd
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.meta_draws import MetaBatch
from tests.backbone.tiny import TrueFloat64, tiny
from tests.rules.meta_toys import BOWL, Toy, bowl, linear, meta_numbers, unit_loss, unrolled, wave

OUTER = Sgd(Rate((1.0,)))
TOY = Toy(wave)
STEPS = (1, 3, 10)
INNERS = (InnerSgd(0.02), InnerAdam(0.05))


def start(copies: int = 1, seed: int = 0) -> Params:
    return {"prompt": torch.randn(copies, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))}


class Recording(Sgd):
    """Hands the gradient back in place of moved params."""

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        return gradient, memory


def meta_gradient(
    rule: Maml | Implicit, params: Params, batch: MetaBatch, objective: object = TOY
) -> tuple[Params, Info]:
    recording = replace(rule, optimiser=Recording(Rate((1.0,))))
    state, info = recording.step(recording.init(params), batch, objective)
    return state.params, info


def gradient(rule: Maml | Implicit, params: Params, batch: MetaBatch, objective: object = TOY) -> Params:
    return meta_gradient(rule, params, batch, objective)[0]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    error = float((ours - theirs).norm() / theirs.norm())
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("inner", INNERS, ids=("sgd", "adam"))
@pytest.mark.parametrize("steps", STEPS)
def test_equals_unrolled_autograd(steps: int, inner: InnerSgd | InnerAdam) -> None:
    params, batch = start(), meta_numbers(steps)
    rule = Maml(OUTER, Inner(inner))
    ours, info = meta_gradient(rule, params, batch)
    theirs, loss = unrolled(unit_loss(TOY), {"prompt": params["prompt"][0]}, batch, inner)
    close(ours["prompt"][0], theirs["prompt"], 1e-7)
    assert info["loss"].item() == pytest.approx(loss.item(), rel=1e-7)
    first_order, _ = unrolled(unit_loss(TOY), {"prompt": params["prompt"][0]}, batch, inner, order=1)
    if (steps, inner) != (1, INNERS[1]):  # the first step of Adam is all but a sign
        assert float((first_order["prompt"] - theirs["prompt"]).norm()) > 1e-3 * float(theirs["prompt"].norm())
    close(gradient(Maml(OUTER, Inner(inner), order=1), params, batch)["prompt"][0], first_order["prompt"], 1e-7)


@pytest.mark.parametrize("inner", INNERS, ids=("sgd", "adam"))
@pytest.mark.parametrize("steps", STEPS)
def test_equals_central_differences(steps: int, inner: InnerSgd | InnerAdam) -> None:
    params, batch = start(), meta_numbers(steps)
    rule = Maml(OUTER, Inner(inner))

    def loss(prompt: Tensor) -> float:
        return meta_gradient(rule, {"prompt": prompt}, batch)[1]["loss"].item()

    ours = gradient(rule, params, batch)["prompt"]
    theirs, width = torch.zeros_like(ours), 1e-5
    for place in range(ours.numel()):
        bump = torch.zeros_like(ours).flatten()
        bump[place] = width
        bump = bump.view_as(ours)
        theirs.view(-1)[place] = (loss(params["prompt"] + bump) - loss(params["prompt"] - bump)) / (2 * width)
    close(ours, theirs)


@pytest.mark.parametrize("inner", INNERS, ids=("sgd", "adam"))
@pytest.mark.parametrize("order", [1, 2])
def test_learned_inner_rates_get_their_gradient(inner: InnerSgd | InnerAdam, order: int) -> None:
    batch = meta_numbers(3)
    params = {**start(), "inner_rate/prompt": torch.ones_like(start()["prompt"])}
    params["inner_rate/prompt"] = params["inner_rate/prompt"] * torch.tensor([[0.5, 1.0], [2.0, 0.7]])
    theirs, _ = unrolled(
        unit_loss(TOY), {"prompt": params["prompt"][0]}, batch, inner, {"prompt": params["inner_rate/prompt"][0]}
    )
    ours = gradient(Maml(OUTER, Inner(inner)), params, batch)
    assert set(ours) == set(params)
    for name in params:
        close(ours[name][0], theirs[name], 1e-7)


def test_pieces_change_nothing() -> None:
    params, batch = start(), meta_numbers(3)
    whole = gradient(Maml(OUTER, Inner(INNERS[0])), params, batch)
    close(gradient(Maml(OUTER, Inner(INNERS[0])), params, batch, Toy(wave, pieces=3))["prompt"], whole["prompt"], 1e-7)


def test_meta_learners_are_independent() -> None:
    params, batch = start(copies=2), meta_numbers(3, units=4, owner=[0, 1, 1, 0])
    both = gradient(Maml(OUTER, Inner(INNERS[0])), params, batch)["prompt"]
    for copy in range(2):
        mine = (batch.owner == copy).nonzero().flatten()
        alone = MetaBatch(
            tuple(of_units(b, mine) for b in batch.inner), of_units(batch.query, mine), torch.zeros(2, dtype=torch.long)
        )
        close(
            both[copy],
            gradient(Maml(OUTER, Inner(INNERS[0])), {"prompt": params["prompt"][[copy]]}, alone)["prompt"][0],
            1e-12,
        )


def of_units(batch: Batch, units: Tensor) -> Batch:
    texts = torch.isin(batch.copy_index, units).nonzero().flatten()
    taken = batch.take(texts)
    new = torch.searchsorted(units, taken.copy_index)
    return Batch(**{**vars(taken), "copy_index": new, "prompt_index": new})


def test_first_order_is_exact_where_the_hessian_vanishes() -> None:
    params, batch = start(), meta_numbers(3)
    exact, first = (gradient(Maml(OUTER, Inner(INNERS[0]), order), params, batch, Toy(linear)) for order in (2, 1))
    assert torch.equal(exact["prompt"], first["prompt"])
    exact, first = (gradient(Maml(OUTER, Inner(INNERS[0]), order), params, batch, Toy(bowl)) for order in (2, 1))
    assert float((exact["prompt"] - first["prompt"]).norm()) > 0.01 * float(exact["prompt"].norm())


def two_parts(params: Params, value: Tensor) -> Tensor:
    return wave({"prompt": params["prompt"] * params["shared"]}, value)


def test_partial_adaptation_moves_a_part_and_learns_all() -> None:
    params = {**start(), "shared": start(seed=1)["prompt"] + 1}
    batch, rate = meta_numbers(3), 0.02
    rule = Maml(OUTER, Inner(InnerSgd(rate), names=("prompt",)))
    trajectory = rule.inner.run(Toy(two_parts), {n: p.expand(3, -1, -1) for n, p in params.items()}, batch.inner)
    assert torch.equal(trajectory.end["shared"], trajectory.start["shared"])
    assert not torch.equal(trajectory.end["prompt"], trajectory.start["prompt"])
    ours = gradient(rule, params, batch, Toy(two_parts))

    leaves = {n: p[0].clone().requires_grad_() for n, p in params.items()}
    total, loss = torch.zeros((), dtype=torch.float64), unit_loss(Toy(two_parts))
    for u in range(3):
        p = dict(leaves)
        for support in batch.inner:
            (g,) = torch.autograd.grad(loss(p, u, support), [p["prompt"]], create_graph=True)
            p["prompt"] = p["prompt"] - rate * g
        total = total + loss(p, u, batch.query) / 3
    for name, theirs in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
        close(ours[name][0], theirs, 1e-7)
    with pytest.raises(SpecError, match=r"inner_names.*prompt, shared"):
        gradient(Maml(OUTER, Inner(InnerSgd(rate), names=("promt",))), params, batch, Toy(two_parts))


def test_implicit_gradient_is_the_closed_form_on_a_bowl() -> None:
    support = meta_numbers(1, units=2)
    batch = MetaBatch(support.inner * 400, support.query, support.owner)
    width = 0.8
    rule = Implicit(OUTER, Inner(InnerSgd(0.2)), width=width, solve=10)
    params = start()
    theta = params["prompt"].flatten()
    curve, want = BOWL.T @ BOWL, torch.zeros(4, dtype=torch.float64)
    for u in range(2):
        values = [b.text_ids[b.copy_index == u, 0].double() for b in (batch.inner[0], batch.query)]
        pushes = [BOWL.sum(0) * v.mean() for v in values]  # A' 1 times the mean target
        left = torch.eye(4, dtype=torch.float64) / width**2 + curve
        phi = torch.linalg.solve(left, theta / width**2 + pushes[0])
        want += torch.linalg.solve(torch.eye(4, dtype=torch.float64) + width**2 * curve, curve @ phi - pushes[1]) / 2
    close(gradient(rule, params, batch, Toy(bowl))["prompt"].flatten(), want, 1e-8)


def test_conjugate_gradients_solve_every_copy_alone_and_stop_at_negative_curvature() -> None:
    g = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 5, 5, dtype=torch.float64, generator=g)
    matrices = roots @ roots.mT + torch.eye(5, dtype=torch.float64)
    matrices[1] = -matrices[1]
    right = {"prompt": torch.randn(2, 5, dtype=torch.float64, generator=g)}
    solved, residual = conjugate_gradients(
        lambda v: {"prompt": (matrices @ v["prompt"][..., None])[..., 0]}, right, 5, 0
    )
    close(solved["prompt"][0], torch.linalg.solve(matrices[0], right["prompt"][0]), 1e-9)
    assert residual[0] < 1e-8
    assert torch.equal(solved["prompt"][1], right["prompt"][1])
    assert residual[1] == 1


# On models


def rows(seed: int, units: int, each: int) -> Batch:
    """Ragged random rows, `each` for every unit."""
    g = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 96, (int(torch.randint(low, high, (1,), generator=g)),), generator=g).tolist())

    return collate(
        [Tokens(ids(1, 6), (ids(1, 4),)) for _ in range(units * each)], [u for u in range(units) for _ in range(each)]
    )


def meta_rows(steps: int, units: int = 2, each: int = 3) -> MetaBatch:
    inner = tuple(rows(k, units, each) for k in range(steps))
    return MetaBatch(inner, rows(99, units, each), torch.zeros(units, dtype=torch.long))


def reference_loss(family: str) -> object:
    """One unit's mean loss through the model's own forward pass on concatenated embeddings."""
    frozen = tiny(family).frozen

    def loss(params: Params, unit: int, batch: Batch) -> Tensor:
        mine = of_units(batch, torch.tensor([unit]))
        return reference_losses(frozen, params["prompt"][None], mine).mean()

    return loss


@pytest.mark.parametrize(("family", "steps"), [("llama", 1), ("llama", 3), ("llama", 10), ("gpt2", 2), ("t5", 2)])
def test_on_a_model_equals_unrolled_autograd(family: str, steps: int) -> None:
    backbone = tiny(family, max_tokens=60)
    objective = PromptObjective(backbone, Direct(3, 32))
    params = {"prompt": torch.randn(1, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    batch, inner = meta_rows(steps), InnerSgd(0.3)
    with TrueFloat64():
        ours = gradient(Maml(OUTER, Inner(inner)), params, batch, objective)
        with sdpa_kernel(SDPBackend.MATH):
            theirs, _ = unrolled(reference_loss(family), {"prompt": params["prompt"][0]}, batch, inner)
            first, _ = unrolled(reference_loss(family), {"prompt": params["prompt"][0]}, batch, inner, order=1)
    close(ours["prompt"][0], theirs["prompt"])
    assert float((first["prompt"] - theirs["prompt"]).norm()) > 1e-3 * float(theirs["prompt"].norm())


def test_says_that_encoder_decoders_get_plain_attention(caplog: pytest.LogCaptureFixture) -> None:
    curvature.logged.clear()
    objective = PromptObjective(tiny("t5"), Direct(2, 32))
    params = {"prompt": torch.randn(1, 2, 32, dtype=torch.float64)}
    with caplog.at_level("INFO", logger="promptprior"):
        for _ in range(2):
            hessian_product(objective, params, rows(0, 1, 2), params)
    assert [r.message for r in caplog.records if "second derivative" in r.message] == [caplog.records[-1].message]


def test_second_order_through_a_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptprior.backbone.kernels import lm_head as head

    objective = PromptObjective(tiny("llama"), Direct(3, 32))
    params = {"prompt": torch.randn(2, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    whole = hessian_product(objective, params, rows(0, 2, 3), params)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 3 * 96)
    close(hessian_product(objective, params, rows(0, 2, 3), params)["prompt"], whole["prompt"], 1e-9)


class Alive(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest number of bytes in distinct storages made under it that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        return out

    def follow(self, storage: torch.UntypedStorage) -> None:
        import weakref

        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def peak(steps: int, rule_of: object) -> int:
    gc.collect()
    objective = PromptObjective(tiny("llama", torch.float32), Direct(4, 32))
    params = {"prompt": torch.randn(1, 4, 32)}
    batch = meta_rows(steps, units=4, each=6)
    with Alive() as alive:
        rule_of(params, batch, objective)
    return alive.peak


@pytest.mark.slow
def test_memory_is_flat_in_inner_steps() -> None:
    def ours(params: Params, batch: MetaBatch, objective: PromptObjective) -> None:
        gradient(Maml(OUTER, Inner(InnerSgd(1.0))), params, batch, objective)

    def graph(params: Params, batch: MetaBatch, objective: PromptObjective) -> None:
        leaf = params["prompt"].clone().requires_grad_()
        p = leaf.expand(4, -1, -1)
        for support in batch.inner:
            (g,) = torch.autograd.grad(objective.losses({"prompt": p}, support).sum(), p, create_graph=True)
            p = p - g
        objective.losses({"prompt": p}, batch.query).sum().backward()

    assert peak(10, graph) > 3 * peak(1, graph)  # the measure sees an unrolled graph grow
    assert peak(10, ours) < 1.2 * peak(1, ours)


# What must not happen


def test_inner_steps_that_move_nothing_are_an_error() -> None:
    """papers.md 3.6.2: the published inner rate 3e-5 left every adapted prompt where it was."""
    rule = Maml(OUTER, Inner(InnerSgd(3e-5, scale=0.1)))
    with pytest.raises(TrainingError, match=r"moved 3 of 3 units.*3e-5 is such a no-op.*inner_rate"):
        rule.step(rule.init(start()), meta_numbers(1), TOY)


def test_a_query_is_needed() -> None:
    batch = meta_numbers(1)
    with pytest.raises(SpecError, match="query_size"):
        gradient(Maml(OUTER, Inner(INNERS[0])), start(), MetaBatch(batch.inner, None, batch.owner))


@pytest.mark.parametrize("kind", ["maml", "fomaml", "meta_sgd", "imaml"])
def test_query_loss_falls(kind: str) -> None:
    objective = PromptObjective(tiny("llama", torch.float32), Direct(3, 32))
    inner, outer = Inner(InnerSgd(1.0)), AdamW(Rate((0.05,)))
    rule = Implicit(outer, inner, solve=2) if kind == "imaml" else Maml(outer, inner, 1 if kind == "fomaml" else 2)
    params = {"prompt": torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))}
    factors = {f"{MULTIPLIER}prompt": torch.ones_like(params["prompt"])} if kind == "meta_sgd" else {}
    state: State = rule.init(params | factors)
    losses, batch = [], meta_rows(2)
    for _ in range(8):
        state, info = rule.step(state, batch, objective)
        losses.append(info["loss"].item())
    assert losses[-1] < losses[0] - 0.2
    assert info["moved"].item() > 1e-3


@pytest.mark.parametrize("steps", STEPS)
def test_a_bank_equals_unrolled_autograd(steps: int) -> None:
    """Rows are retrieved by each text; the reference gathers them by hand for every row."""
    backbone = tiny("gpt2", max_tokens=60)
    form = Bank(backbone, size=6, retrieve=2, own=1, query="mean", scoring="cosine")
    g = torch.Generator().manual_seed(0)
    params = {
        "bank": torch.randn(1, 6, 32, dtype=torch.float64, generator=g),
        "keys": torch.randn(1, 6, 32, dtype=torch.float64, generator=g),
        "own": torch.randn(1, 1, 1, 32, dtype=torch.float64, generator=g),
    }
    batch, inner = meta_rows(steps), InnerSgd(0.3)

    def loss(p: Params, unit: int, some: Batch) -> Tensor:
        mine = of_units(some, torch.tensor([unit]))
        chosen = form.retrieved({"keys": params["keys"], "bank": params["bank"]}, mine)
        prompts = torch.stack([torch.cat([p["bank"][rows], p["own"][0]]) for rows in chosen])
        return reference_losses(backbone.frozen, prompts, mine.reading(torch.arange(mine.texts))).mean()

    with TrueFloat64():
        rule = Maml(OUTER, Inner(inner, names=("bank", "own")))
        ours = gradient(rule, params, batch, PromptObjective(backbone, form))
        with sdpa_kernel(SDPBackend.MATH):
            theirs, _ = unrolled(loss, {n: params[n][0] for n in ("bank", "own")}, batch, inner)
    for name, expected in theirs.items():
        close(ours[name][0], expected)
    assert not ours["keys"].any()
