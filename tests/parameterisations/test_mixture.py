"""The mixture against its formula in plain loops, one text at a time, in float64."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.frozen import freeze
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.fit import RunControl, make_run_context
from promptprior.methods.from_sources.attempt import Attempt
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.registry import parameterisation, plain_settings
from promptprior.parameterisations.retrieval.mixture import Mixture
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import tiny

C, K, S, L, R = 2, 3, 4, 3, 5
BACKBONE = tiny("llama")
WIDTH = BACKBONE.width
TEXTS = ["ab", "cdefg", "hij", "", "klmnopqr", "ab", "st", "uvw", "x"]
NAMES = ("a", "b", "c", "d")


def batch(texts: list[str] = TEXTS) -> Batch:
    made = [
        Tokens(tuple(BACKBONE.frozen.alone(text)), ((5,), (6, 7), (8,))[: 1 + x % 3]) for x, text in enumerate(texts)
    ]
    return collate(made, [x % C for x in range(len(texts))], [x % K for x in range(len(texts))])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params(tasks: int = K) -> Params:
    shapes = {"target": (C, tasks, L, WIDTH), "sources": (C, S, L, WIDTH), "down": (C, WIDTH, R), "up": (C, R, WIDTH)}
    shapes |= {"gain": (C, WIDTH), "shift": (C, WIDTH)}
    return {name: drawn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def mixture(**settings: Any) -> Mixture:
    return Mixture(BACKBONE, L, NAMES, **settings)


def by_hand(form: Mixture, values: Params, text: str, copy: int, task: int) -> tuple[list[float], Tensor]:
    """Weights and prompt of one text, in loops over sources and entries."""
    words = BACKBONE.frozen.embed(torch.tensor(BACKBONE.frozen.alone(text), dtype=torch.long)).detach()
    q = torch.zeros(WIDTH, dtype=torch.float64)
    if len(words):
        q = torch.stack([(words[:, d].max() if form.query == "max" else words[:, d].mean()) for d in range(WIDTH)])
    q = q - values["centre"][copy] if "centre" in values else q
    q = q if form.absolute else q / BACKBONE.scale
    z = [sum(float(q[d] * values["down"][copy, d, r]) for d in range(WIDTH)) for r in range(R)]
    z = [v / (1 + math.exp(-v)) for v in z]
    rows = [sum(z[r] * float(values["up"][copy, r, d]) for r in range(R)) for d in range(WIDTH)]
    y = torch.tensor(rows, dtype=torch.float64)
    h = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt() * values["gain"][copy] + values["shift"][copy]
    sources, own = values["sources"][copy], values["target"][copy, task]
    read = [*sources, own] if form.attends == "all" else list(sources)
    pooled = [torch.stack([p[:, d].max() for d in range(WIDTH)]) for p in read]
    root = math.sqrt(sum(float(v) ** 2 for k in pooled[:S] for v in k) / (S * WIDTH))
    divisor = form.temperature * (1 if form.absolute else math.sqrt(WIDTH) * root)
    e = [math.exp(float(h @ k) / divisor) for k in pooled]
    weights = [v / sum(e) for v in e]
    return weights, own + sum(w * p for w, p in zip(weights, read, strict=True))


@pytest.mark.parametrize("attends", ["all", "sources"])
@pytest.mark.parametrize("query", ["max", "mean"])
@pytest.mark.parametrize("absolute", [False, True])
def test_every_text_reads_the_mixture_of_the_formula(attends: Any, query: Any, absolute: bool) -> None:
    form = mixture(attends=attends, query=query, temperature=7.0 if absolute else 0.6, absolute=absolute)
    values, inputs = params(), batch()
    if query == "mean":
        values["centre"] = drawn(C, WIDTH, seed=7) * 0.1
    prompts, index = form.prompts(values, inputs)
    assert index.tolist() == list(range(len(TEXTS)))
    for x, text in enumerate(TEXTS):
        weights, prompt = by_hand(form, values, text, x % C, x % K)
        torch.testing.assert_close(form.attention(values, inputs)[x].tolist(), weights)
        torch.testing.assert_close(prompts[x], prompt)


def test_one_task_serves_all_and_texts_of_a_copy_still_differ() -> None:
    prompts, _ = mixture().prompts(params(tasks=1), batch())
    same = (prompts[:, None] - prompts[None]).flatten(2).abs().amax(2) < 1e-9
    alike = [(0, 5)]  # the same word, but another copy's network and prompts: "ab" of copy 0 and of copy 1
    assert all(not same[i, j] for i, j in alike)
    assert int(same.sum()) == len(TEXTS)


def test_padding_and_order_change_nothing() -> None:
    form, values, inputs = mixture(), params(), batch()
    prompts, _ = form.prompts(values, inputs)
    junk = torch.full((inputs.texts, 6), 9)
    padded = replace(inputs, text_ids=torch.cat([inputs.text_ids, junk], dim=1))
    torch.testing.assert_close(form.prompts(values, padded)[0], prompts, rtol=0, atol=0)
    some = torch.tensor([1, 4, 7])
    torch.testing.assert_close(form.prompts(values, inputs.take(some))[0], prompts[some])
    backwards = collate(
        [Tokens(tuple(BACKBONE.frozen.alone(t)), ((5,),)) for t in TEXTS[::-1]],
        [x % C for x in range(len(TEXTS))][::-1],
        [x % K for x in range(len(TEXTS))][::-1],
    )
    torch.testing.assert_close(form.prompts(values, backwards)[0].flip(0), prompts)


def test_gradients_are_those_of_the_formula_and_sources_have_none() -> None:
    form, values, inputs = mixture(temperature=0.5), params(), batch()
    mask = drawn(len(TEXTS), L, WIDTH, seed=9)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    ours = torch.autograd.grad((form.prompts(leaves, inputs)[0] * mask).sum(), list(leaves.values()), allow_unused=True)
    again = {n: v.clone().requires_grad_(n != "sources") for n, v in values.items()}
    total = torch.stack([formula(form, again, text, x % C, x % K) for x, text in enumerate(TEXTS)]).mul(mask).sum()
    moving = [name for name in values if name != "sources"]
    expected = torch.autograd.grad(total, [again[name] for name in moving])
    found = dict(zip(leaves, ours, strict=True))
    assert found["sources"] is None
    for name, value in zip(moving, expected, strict=True):
        torch.testing.assert_close(found[name], value, msg=name)
        assert value.abs().max() > 1e-6, name


def formula(form: Mixture, values: Params, text: str, copy: int, task: int) -> Tensor:
    """One text's prompt with torch's own modules' functions, differentiable."""
    words = BACKBONE.frozen.embed(torch.tensor(BACKBONE.frozen.alone(text), dtype=torch.long)).detach()
    q = words.amax(0) / BACKBONE.scale if len(words) else torch.zeros(WIDTH, dtype=torch.float64)
    y = torch.nn.functional.silu(q @ values["down"][copy]) @ values["up"][copy]
    h = torch.nn.functional.layer_norm(y, (WIDTH,), values["gain"][copy], values["shift"][copy])
    read = torch.cat([values["sources"][copy], values["target"][copy, task][None]])
    keys = read.amax(1)
    unit = keys[:S].square().mean().sqrt()
    weights = torch.softmax(keys @ h / (form.temperature * WIDTH**0.5 * unit), dim=0)
    return values["target"][copy, task] + torch.tensordot(weights, read, dims=1)


def test_one_engine_call_scores_every_text_after_its_own_prompt() -> None:
    form, inputs = mixture(), batch()
    values = {
        name: value * BACKBONE.scale if name in ("target", "sources") else value for name, value in params().items()
    }
    together = PromptObjective(BACKBONE, form).losses(values, inputs)
    _, first = by_hand(form, values, TEXTS[0], 0, 0)
    for x, text in enumerate(TEXTS[1:], start=1):
        _, prompt = by_hand(form, values, text, x % C, x % K)
        two = replace(inputs.take(torch.tensor([0, x])), prompt_index=torch.tensor([0, 1]))
        expected = together[(inputs.text_index == 0) | (inputs.text_index == x)]
        torch.testing.assert_close(BACKBONE.losses(torch.stack([first, prompt]), two), expected, rtol=1e-6, atol=1e-6)


def test_the_loss_gives_copies_their_own_gradients_and_sources_zeros() -> None:
    form, inputs = mixture(), batch()
    _, gradient = loss_and_gradient(PromptObjective(BACKBONE, form), params(), inputs)
    assert not gradient["sources"].any()
    assert all(gradient[name].flatten(1).abs().amax(1).min() > 0 for name in gradient if name != "sources")
    first = inputs.take(torch.tensor([x for x in range(len(TEXTS)) if x % C == 0]))
    _, alone = loss_and_gradient(PromptObjective(BACKBONE, form), {n: v[:1] for n, v in params().items()}, first)
    for name, value in alone.items():
        torch.testing.assert_close(gradient[name][:1], value, rtol=1e-5, atol=1e-9, msg=name)


def louder(factor: float) -> Backbone:
    """The same model with embeddings that many times larger."""
    made = tiny("llama")
    with torch.no_grad():
        made.frozen.model.get_input_embeddings().weight.mul_(factor)
    return as_backbone(freeze(made.frozen.model, made.frozen.tokenizer, "louder"), check=False)


def test_attention_transfers_between_scales_where_absolute_numbers_do_not() -> None:
    values, loud = params(), louder(50.0)
    scaled = {n: v * 50 if n in ("target", "sources") else v for n, v in values.items()}
    for form in (mixture(), mixture(absolute=True, temperature=20.0)):
        before = form.attention(values, batch())
        after = replace(form, backbone=loud).attention(scaled, batch())
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-4) is not form.absolute


def test_the_released_temperature_sees_nothing_at_the_scale_of_a_llama() -> None:
    """2087 was made for trained T5 prompts, whose entries are about 50; here they are about 0.1."""
    small = {n: v * 0.1 if n in ("target", "sources") else v for n, v in params().items()}
    uniform = mixture(absolute=True, temperature=2087.0).attention(small, batch())
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / (S + 1)), rtol=0.02, atol=0)
    ours = mixture().attention(small, batch())
    assert ours.max() > 1.5 / (S + 1)


def test_each_text_uses_its_own_copys_network_whatever_the_order_of_copies() -> None:
    form, values = mixture(), {name: torch.cat([value, value * 1.5]) for name, value in params().items()}  # 2 C copies
    copies = [2, 0, 2, 3, 2]  # one copy without texts, one with most
    texts = [Tokens(tuple(BACKBONE.frozen.alone(t)), ((5,),)) for t in ("ab", "cdefg", "hij", "st", "x")]
    attention = form.attention(values, collate(texts, copies, [0] * 5))
    for x, (text, copy) in enumerate(zip(("ab", "cdefg", "hij", "st", "x"), copies, strict=True)):
        torch.testing.assert_close(attention[x].tolist(), by_hand(form, values, text, copy, 0)[0])


def test_what_texts_attend_to_is_the_mean_over_them() -> None:
    form = mixture()
    values = {name: value[:1] for name, value in params(tasks=1).items()}
    texts = [Tokens(tuple(BACKBONE.frozen.alone(t)), ((5,),)) for t in ("ab", "cdefg", "hij")]
    found: Any = form.diagnose(values, {"t": texts})["attention"]["t"]  # type: ignore[index]
    hands = [by_hand(form, values, t, 0, 0)[0] for t in ("ab", "cdefg", "hij")]
    means = [sum(column) / 3 for column in zip(*hands, strict=True)]
    assert list(found["weights"]) == [*NAMES, "target"]
    assert list(found["weights"].values()) == pytest.approx(means, rel=1e-3)
    assert found["entropy"] == pytest.approx(-sum(m * math.log2(m) for m in means), rel=1e-3)
    spread = max(math.sqrt(sum((h[j] - means[j]) ** 2 for h in hands) / 3) for j in range(S + 1))
    assert found["varies"] == pytest.approx(spread, rel=1e-3)
    assert len(mixture(attends="sources").diagnose(values, {"t": texts})["attention"]["t"]["weights"]) == S  # type: ignore[index]


def test_the_network_starts_as_torchs_layers_do() -> None:
    rank = 2000
    made = Attempt(rank=rank).network(make_run_context(BACKBONE, Settings(), RunControl()), [], seed=0)
    for weight, fan_in in ((made["down"], WIDTH), (made["up"], rank)):
        assert weight.numel() == WIDTH * rank
        bound = 1 / math.sqrt(fan_in)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert abs(weight.mean()) < 0.02 * bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert made["gain"].eq(1).all()
    assert made["shift"].eq(0).all()


def test_it_comes_back_from_its_settings_and_refuses_a_temperature_of_zero() -> None:
    form = mixture(temperature=0.5, attends="sources")
    again: Any = parameterisation("mixture", plain_settings(form), BACKBONE)
    torch.testing.assert_close(again.prompts(params(), batch())[0], form.prompts(params(), batch())[0])
    with pytest.raises(SpecError, match=r"temperature 0 \(--options.temperature\)"):
        mixture(temperature=0)
