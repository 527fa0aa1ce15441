import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.backbone.text_queries import pooled
from promptprior.errors import ArtifactError, SpecError
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.registry import parameterisation, plain_settings
from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import tiny

N, K, C = 12, 4, 2
BACKBONE = tiny("llama")
TEXTS = ["ab", "cdefg", "hij", "", "klmnopqr", "ab", "st", "uvw"]


def batch(texts: list[str] = TEXTS, copies: int = C) -> Batch:
    made = [
        Tokens(tuple(BACKBONE.frozen.alone(text)), ((5,), (6, 7), (8,))[: 1 + x % 3]) for x, text in enumerate(texts)
    ]
    return collate(made, [x % copies for x in range(len(texts))], [x % 3 for x in range(len(texts))])


def padded(inputs: Batch, more: int) -> Batch:
    """The same texts with other ids behind them."""
    junk = torch.full((inputs.texts, more), 9)
    return replace(inputs, text_ids=torch.cat([inputs.text_ids, junk], dim=1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params(form: Bank, keys: bool = False, mapped: bool = False, own: int = 1) -> Params:
    made = {"bank": drawn(C, form.size, BACKBONE.width)}
    made |= {"own": drawn(C, own, form.own, BACKBONE.width, seed=1)} if form.own else {}
    made |= {"keys": drawn(C, form.size, BACKBONE.width, seed=2)} if keys else {}
    if mapped:
        made |= {"centre": drawn(C, BACKBONE.width, seed=3)}
        made |= {"down": drawn(C, BACKBONE.width, 3, seed=4), "up": drawn(C, 3, BACKBONE.width, seed=5) * 0.3}
    return made


def bank(**settings: Any) -> Bank:
    return Bank(BACKBONE, **{"size": N, "retrieve": K, **settings})


def losses(form: Bank, values: Params, inputs: Batch) -> Tensor:
    return PromptObjective(BACKBONE, form).losses(values, inputs)


@pytest.mark.parametrize("scoring", ["dot", "scaled", "cosine"])
@pytest.mark.parametrize("query", ["max", "mean"])
@pytest.mark.parametrize("separate", [False, True])
def test_retrieval_is_brute_force(scoring: str, query: str, separate: bool) -> None:
    form = bank(scoring=scoring, query=query)
    values = params(form, keys=separate, mapped=True)
    prompts, index = form.prompts(values, batch())
    for x, text in enumerate(TEXTS):
        c = x % C
        words = BACKBONE.frozen.embed(torch.tensor(BACKBONE.frozen.alone(text), dtype=torch.long)).detach()
        q = torch.zeros(BACKBONE.width, dtype=torch.float64)
        if len(words):
            q = words.max(0).values if query == "max" else words.mean(0)
        q = q - values["centre"][c]
        q = q + values["up"][c].T @ (values["down"][c].T @ q)
        keys = values["keys" if separate else "bank"][c]
        score = [float(q @ key) / (float(q.norm() * key.norm()) if scoring == "cosine" else 1.0) for key in keys]
        wanted = sorted(sorted(range(N), key=lambda n: -score[n])[:K])
        assert torch.equal(prompts[index[x]], values["bank"][c][wanted]), text


def test_padding_and_order_change_nothing() -> None:
    form = bank(own=2, query="mean")
    values, inputs = params(form), batch()
    chosen = form.retrieved(values, inputs)
    assert torch.equal(form.retrieved(values, padded(inputs, 7)), chosen)
    assert torch.equal(
        replace(form, scoring="random").retrieved(values, padded(inputs, 7)),
        replace(form, scoring="random").retrieved(values, inputs),
    )
    order = torch.randperm(inputs.texts, generator=torch.Generator().manual_seed(0))
    shuffled = collate(
        [Tokens(tuple(BACKBONE.frozen.alone(TEXTS[x])), ((5,),)) for x in order.tolist()],
        inputs.copy_index[order].tolist(),
    )
    assert torch.equal(form.retrieved(values, shuffled), chosen[order])
    a, index_a = form.prompts(values, inputs)
    b, index_b = form.prompts(values, shuffled)
    assert torch.equal(a, b)
    assert torch.equal(index_a[order], index_b)


def test_queries_see_only_the_text() -> None:
    inputs = batch()
    assert torch.equal(pooled(BACKBONE, inputs, "max"), pooled(BACKBONE, padded(inputs, 5), "max"))
    assert not pooled(BACKBONE, inputs, "max")[3].any()
    assert not pooled(BACKBONE, batch(["", ""]), "max").any()


def test_equal_sets_share_a_prompt_and_that_changes_nothing() -> None:
    form = bank(own=3)
    values, inputs = params(form, own=3), batch(TEXTS * 6)
    prompts, index = form.prompts(values, inputs)
    keys = {
        (int(c), int(t), *rows)
        for c, t, rows in zip(
            inputs.copy_index, inputs.task_index, form.retrieved(values, inputs).tolist(), strict=True
        )
    }
    assert len(prompts) == len(keys) < inputs.texts
    leaves = {n: p.clone().requires_grad_() for n, p in values.items()}
    prompts, index = form.prompts(leaves, inputs)
    shared = BACKBONE.losses(prompts, inputs.reading(index))
    apart = BACKBONE.losses(prompts[index], inputs.reading(torch.arange(inputs.texts)))
    torch.testing.assert_close(shared, apart, rtol=1e-9, atol=1e-9)
    one = torch.autograd.grad(shared.sum(), list(leaves.values()), retain_graph=True)
    other = torch.autograd.grad(apart.sum(), list(leaves.values()))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_the_engine_computes_each_distinct_set_once() -> None:
    form, inputs = bank(), batch(["ab", "cdefg", "ab", "ab"], copies=1)
    values = {"bank": drawn(1, N, BACKBONE.width)}
    apart = replace(form, selection="weighted", temperature=1e9)  # a prompt for each text, all but the same
    tokens = []
    for each in (form, apart):
        before = BACKBONE.meter.tokens
        losses(each, values, inputs)
        tokens.append(BACKBONE.meter.tokens - before)
    distinct = len(form.retrieved(values, inputs).unique(dim=0))
    assert distinct < 4
    assert tokens[1] - tokens[0] == (4 - distinct) * K


@torch.no_grad()
def test_pieces_of_one_call_share_no_prompt_twice() -> None:
    """Which is why inference keeps no cache of prefixes: texts that read one prompt stand together in the engine."""
    form, inputs = bank(), batch(["ab", "cdefg", "hij", "klmnopqr"] * 5, copies=1)
    values = {"bank": drawn(1, N, BACKBONE.width)}
    small = replace(BACKBONE, max_tokens=60)
    whole = losses(form, values, inputs)
    before = BACKBONE.meter.tokens
    pieces = PromptObjective(small, replace(form, backbone=small)).losses(values, inputs)
    computed = BACKBONE.meter.tokens - before
    torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)
    texts = int(inputs.text_lengths.sum() + inputs.target_lengths.sum()) - inputs.rows
    calls, distinct = math.ceil(texts / (60 - K)), len(form.retrieved(values, inputs).unique(dim=0))
    assert computed <= texts + (distinct + calls) * K


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_queries_of_first_layers_are_the_models_own_states(kind: str) -> None:
    backbone = tiny(kind)
    model = backbone.frozen.model
    trunk = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    inputs = collate([Tokens(tuple(range(5, 5 + n)), ((5,),)) for n in (7, 2, 4)])
    for layers in (0, 1):
        found = pooled(backbone, inputs, "mean", layers)
        for x, n in enumerate(inputs.text_lengths.tolist()):
            alone = trunk(input_ids=inputs.text_ids[x : x + 1, :n], output_hidden_states=True).hidden_states[layers][0]
            torch.testing.assert_close(found[x], alone.mean(0).detach(), rtol=1e-6, atol=1e-8)
        for way in ("mean", "max"):
            same = pooled(backbone, padded(inputs, 6), way, layers)  # type: ignore[arg-type]
            torch.testing.assert_close(same, pooled(backbone, inputs, way, layers), rtol=1e-6, atol=1e-8)  # type: ignore[arg-type]
    word = collate([Tokens((7,), ((5,),))])  # of the last layer, states before the final norm
    norm = trunk.norm if kind == "llama" else trunk.final_layer_norm
    last, normed = pooled(backbone, word, "mean", 2), trunk(input_ids=word.text_ids).last_hidden_state[0]
    torch.testing.assert_close(norm(last), normed)
    assert not torch.allclose(last, normed)
    with pytest.raises(SpecError, match=r"query layers 9 \(--options.query-layers\): expected 0 to 2 \(tiny"):
        Bank(backbone, N, K, layers=9)


def test_layers_of_a_text_run_once_and_retrieve_by_its_order() -> None:
    form = bank(layers=1, query="mean", scoring="cosine")
    values = {"bank": drawn(1, N, BACKBONE.width)}
    inputs = batch(["abc", "cba", "abc", ""], copies=1)
    before = BACKBONE.meter.tokens
    chosen = form.retrieved(values, inputs)
    assert BACKBONE.meter.tokens - before == round(6 / 2)  # two distinct texts of three tokens, one layer of two
    assert torch.equal(form.retrieved(values, padded(inputs, 4)), chosen)
    assert BACKBONE.meter.tokens - before == 3
    asked = form.queries(values, inputs)
    torch.testing.assert_close(asked, pooled(BACKBONE, inputs, "mean", 1))
    assert torch.equal(asked[0], asked[2])
    assert not torch.allclose(asked[0], asked[1], atol=1e-3)  # word embeddings alone would not tell them apart
    words = bank(query="mean").queries(values, inputs)
    torch.testing.assert_close(words[0], words[1])
    assert not asked[3].any()
    assert parameterisation("bank", plain_settings(form), BACKBONE) == form


def test_rows_nobody_retrieves_get_exactly_no_gradient() -> None:
    form = bank(own=1)
    values, inputs = params(form), batch()
    _, gradient = loss_and_gradient(PromptObjective(BACKBONE, form), values, inputs)
    used = torch.zeros(C, N, dtype=torch.bool)
    used[inputs.copy_index[:, None], form.retrieved(values, inputs)] = True
    assert int((~used).sum()) > 0
    assert torch.equal(gradient["bank"].abs().sum(-1) > 0, used)


def test_pieces_that_fit_into_memory_give_the_same_gradient() -> None:
    form = bank(own=2, selection="weighted")
    values, inputs = params(form), batch()
    small = replace(BACKBONE, max_tokens=30)
    whole = loss_and_gradient(PromptObjective(BACKBONE, form), values, inputs)
    objective = PromptObjective(small, replace(form, backbone=small))
    pieces = list(objective.split(values, inputs))
    assert len(pieces) >= 4  # every text brings a prompt of its own
    parts = loss_and_gradient(objective, values, inputs)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("selection", ["soft", "weighted"])
@pytest.mark.parametrize("scoring", ["dot", "scaled", "cosine"])
def test_gradients_of_soft_selections_are_finite_differences(selection: str, scoring: str) -> None:
    form = bank(selection=selection, scoring=scoring, temperature=3.0 if scoring == "dot" else 0.5)
    values, inputs = params(form, keys=True, mapped=True), batch(TEXTS[:3])
    names = list(values)
    cotangent = drawn(3, form.length, BACKBONE.width, seed=9)

    def value(*tensors: Tensor) -> Tensor:
        prompts, _ = form.prompts(dict(zip(names, tensors, strict=True)), inputs)
        return (prompts * cotangent).sum()

    leaves = [values[n].clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-5, fast_mode=True)
    assert all(bool(g.any()) for g in torch.autograd.grad(value(*leaves), leaves))


def test_straight_through_has_the_prompts_of_hard_and_the_gradient_of_log_p() -> None:
    hard, through = bank(), bank(selection="straight_through", temperature=2.0)
    values, inputs = params(hard, keys=True), batch(copies=1)
    values = {n: p[:1].clone().requires_grad_() for n, p in values.items()}
    prompts, index = hard.prompts(values, inputs)
    each, own_index = through.prompts(values, inputs)
    assert torch.equal(own_index, torch.arange(inputs.texts))
    assert torch.equal(each, prompts[index])
    cotangent = drawn(*each.shape, seed=9)
    found = torch.autograd.grad((each * cotangent).sum(), values["keys"])[0]
    scores, chosen = through.scores(values, inputs), hard.retrieved(values, inputs)
    reward = (prompts[index] * cotangent).sum(-1).detach()
    log_p = torch.log_softmax(scores / 2.0, dim=1).gather(1, chosen)
    wanted = torch.autograd.grad((reward * log_p).sum(), values["keys"])[0]
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        assert len(through.prompts(values, inputs)[0]) == len(prompts)  # exams share prompts again


@pytest.mark.parametrize("scoring", ["dot", "scaled", "cosine", "same", "random"])
@pytest.mark.parametrize("selection", ["hard", "straight_through", "weighted", "soft"])
def test_every_selection_of_every_scoring_works_in_float32(selection: str, scoring: str) -> None:
    backbone, form = tiny("llama", torch.float32), bank(selection=selection, scoring=scoring)
    values, inputs = params(form), batch()
    wide, index = form.prompts(values, inputs)
    narrow = {name: value.float().requires_grad_() for name, value in values.items()}
    form = replace(form, backbone=backbone)
    prompts, narrow_index = form.prompts(narrow, inputs)
    assert prompts.dtype == torch.float32
    torch.testing.assert_close(prompts[narrow_index].double(), wide[index], rtol=1e-3, atol=1e-3)
    loss, gradient = loss_and_gradient(PromptObjective(backbone, form), narrow, inputs)
    assert bool(loss.isfinite().all())
    assert bool(gradient["bank"].any())


def test_soft_becomes_the_best_row_of_every_slot() -> None:
    form = bank(selection="soft", temperature=1e-6)
    values, inputs = params(form), batch([t for t in TEXTS if t])  # an empty text likes all rows alike
    prompts, index = form.prompts(values, inputs)
    chosen = form.retrieved(values, inputs)
    assert torch.equal(chosen // (N // K), torch.arange(K).expand(inputs.texts, -1))
    torch.testing.assert_close(prompts[index], values["bank"][inputs.copy_index[:, None], chosen])


def test_controls_ignore_the_text_or_everything_but_the_text() -> None:
    same, random = bank(scoring="same"), bank(scoring="random")
    values, inputs = params(same), batch()
    assert torch.equal(same.retrieved(values, inputs), torch.arange(K).expand(inputs.texts, -1))
    chosen = random.retrieved(values, inputs)
    assert torch.equal(chosen[0], chosen[5])  # the same text
    assert len(chosen.unique(dim=0)) == len(set(TEXTS))
    many = random.retrieved(values, batch([str(i) for i in range(400)]))
    counts = torch.bincount(many.flatten(), minlength=N)
    assert counts.min() > 0.6 * counts.float().mean()


def test_tasks_read_their_own_prompt_and_window() -> None:
    form = bank(own=2, tasks=3, budget=6)
    values, inputs = params(form, own=3), batch()
    prompts, index = form.prompts(values, inputs)
    for x in range(inputs.texts):
        copy, task = x % C, x % 3
        assert torch.equal(prompts[index[x], K:], values["own"][copy, task])
        assert {0: range(6), 1: range(3, 9), 2: range(6, 12)}[task].start <= int(
            form.retrieved(values, inputs)[x].min()
        )
        assert int(form.retrieved(values, inputs)[x].max()) < {0: 6, 1: 9, 2: 12}[task]
    shared = bank(own=2)
    values = params(shared)
    prompts, index = shared.prompts(values, inputs)
    assert torch.equal(prompts[index[1], K:], values["own"][1, 0])


def test_balance_is_one_when_use_is_even_and_pulls_dead_rows_up() -> None:
    form = bank(balance=1.0, scoring="cosine", temperature=0.2)
    values, inputs = params(form, keys=True), batch()
    value = form.penalty({n: p.requires_grad_() for n, p in values.items()}, inputs)
    assert value is not None
    used = torch.zeros(C, N, dtype=torch.float64)
    p = torch.zeros(C, N, dtype=torch.float64)
    scores, chosen = form.scores(values, inputs), form.retrieved(values, inputs)
    for x in range(inputs.texts):
        texts = sum(1 for y in range(inputs.texts) if y % C == x % C)
        used[x % C, chosen[x]] += 1 / K / texts
        p[x % C] += torch.softmax(scores[x] / 0.2, 0).detach() / texts
    torch.testing.assert_close(value.detach(), N * (used * p).sum(1))
    even = replace(form, scoring="scaled", temperature=1e9)
    torch.testing.assert_close(even.penalty(values, inputs).detach(), torch.ones(C, dtype=torch.float64))  # type: ignore[union-attr]
    assert bank().penalty(values, inputs) is None
    assert bank(balance=1.0, scoring="same").penalty(values, inputs) is None


def test_spread_of_orthogonal_and_of_equal_rows() -> None:
    form = bank(spread=2.0)
    eye = torch.eye(BACKBONE.width, dtype=torch.float64)[:N].expand(1, -1, -1).clone().requires_grad_()
    assert float(form.penalty({"bank": eye}, batch(copies=1))[0].detach()) == pytest.approx(0, abs=1e-12)  # type: ignore[index]
    ones = torch.ones(1, N, BACKBONE.width, dtype=torch.float64, requires_grad=True)
    assert float(form.penalty({"bank": ones}, batch(copies=1))[0].detach()) == pytest.approx(2)  # type: ignore[index]


def test_the_penalty_reaches_the_gradient_and_not_the_loss() -> None:
    plain, spread = bank(), bank(spread=0.5)
    values, inputs = params(plain), batch()
    loss, gradient = loss_and_gradient(PromptObjective(BACKBONE, plain), values, inputs)
    other_loss, other = loss_and_gradient(PromptObjective(BACKBONE, spread), values, inputs)
    torch.testing.assert_close(loss, other_loss)
    leaf = values["bank"].clone().requires_grad_()
    added = torch.autograd.grad(spread.penalty({"bank": leaf}, inputs).sum(), leaf)[0]  # type: ignore[union-attr]
    torch.testing.assert_close(other["bank"], gradient["bank"] + added)


def test_copies_are_independent() -> None:
    form = bank(own=1, selection="weighted", balance=0.3)
    values, inputs = params(form), batch()
    _, both = loss_and_gradient(PromptObjective(BACKBONE, form), values, inputs)
    alone = inputs.take(torch.arange(0, inputs.texts, 2))
    _, first = loss_and_gradient(PromptObjective(BACKBONE, form), {n: p[:1] for n, p in values.items()}, alone)
    for name in values:
        torch.testing.assert_close(both[name][:1], first[name], rtol=1e-6, atol=1e-8)


def test_settings_are_plain_and_make_the_bank_again() -> None:
    form = bank(own=2, selection="soft", temperature=0.3)
    assert parameterisation("bank", plain_settings(form), BACKBONE) == form
    with pytest.raises(ArtifactError, match="did you mean 'bank'"):
        parameterisation("banc", {}, BACKBONE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"retrieve": N + 1}, "retrieve <= budget <= bank size"),
        ({"budget": K - 1}, "retrieve <= budget <= bank size"),
        ({"selection": "soft", "retrieve": 5}, "must be a multiple of retrieve 5"),
        ({"temperature": 0.0}, "expected a positive number"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        bank(**settings)


def test_bfloat16_backbones_keep_float32_banks() -> None:
    backbone: Backbone = tiny("llama", torch.bfloat16)
    form = Bank(backbone, N, K)
    prompts, _ = form.prompts({"bank": drawn(C, N, backbone.width).float()}, batch())
    assert prompts.dtype == torch.float32
