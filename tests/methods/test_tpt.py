from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.backbone.engine import as_backbone
from promptprior.backbone.frozen import freeze
from promptprior.config.training import Settings, Training
from promptprior.cost import Cost
from promptprior.errors import DataError, SpecError
from promptprior.evaluate import evaluate_requests, make_eval_set
from promptprior.fit import RunControl, fit
from promptprior.methods import Episode, make_method
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.registry import parameterisation
from promptprior.preflight import length_of_prompt
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import ENDS, LLAMA_LIKE, tiny, tokenizer

SYMBOLS, MARKERS, ORDERS = "0123456789", "abcdef", "ABCDEFGHIJ"
SHIFTS = (3, 7, 1, 9, 4, 6)  # what each marker asks for, which only the training examples say
SETTINGS = Settings(
    length=6,
    source=Training(steps=3, batch_size=6),
    target=Training(steps=3, batch_size=4, learning_rates=(0.1, 0.3)),
)


def three_class(name: str, shift: int) -> Task:
    """A task of three classes, all in every split."""

    def examples(split: str, count: int) -> tuple[Example, ...]:
        answers = ("ay", "be", "ce")
        return tuple(
            Example(f"{split}{i}", f"{split} {i}", answers[(i + shift) % 3], answers, (i + shift) % 3)
            for i in range(count)
        )

    splits = {"train": examples("t", 60), "validation": (), "test": examples("u", 12)}
    return Task(name, "multiple_choice", ("accuracy",), splits, label_names=("ay", "be", "ce"))  # type: ignore[arg-type]


SOURCES = [three_class("s", 0), three_class("r", 1)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"task_prompt": "none", "selection": "soft"},
    {"task_prompt": "fresh", "selection": "straight_through", "keys": "separate", "query_rank": 2},
    {"freeze_bank": True, "selection": "weighted", "keys": "tied", "scoring": "scaled"},
    {"query_layers": 1, "query": "max", "bank_size": 8},
    {"start": "sources", "balance": 0.1, "spread": 0.1, "budget": 30, "selection": "straight_through"},
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_goes_from_sources_to_test_and_through_a_folder(
    backbone: Backbone, options: dict[str, Any], tmp_path: Path
) -> None:
    method = make_method("tpt", options)
    prior = fit(method, SOURCES, backbone, SETTINGS, control=RunControl(tmp_path))
    again = Prior.from_pretrained(tmp_path / "prior", backbone.card)
    assert all(torch.equal(again.params[name], value) for name, value in prior.params.items())
    episodes = [make_episode(three_class("x", 2), 4, 13), make_episode(three_class("y", 1), 2, 21)]
    before = adapt(method, episodes, backbone, again, SETTINGS)
    assert {e.label for e in episodes[0].shots.train} == {0, 1, 2}
    before[0].prompt.save_pretrained(tmp_path / "prompt")
    loaded = replace(before[0], prompt=Prompt.from_pretrained(tmp_path / "prompt", backbone.card))
    assert score_on_test(backbone, [loaded]) == score_on_test(backbone, before[:1])


def test_texts_are_measured_with_the_tokens_that_they_read(backbone: Backbone) -> None:
    """A text that the bank's prompt leaves no room for is refused before a step, not by the model after all."""
    method, episode = make_method("tpt", {"bank_size": 60, "retrieve": 60, "task_tokens": 60}), one_episode(20)
    prior = fit(method, SOURCES, backbone, SETTINGS)
    with pytest.raises(DataError, match="with the prompt's 120"):  # of 128
        adapt(method, [episode], backbone, prior, SETTINGS)
    small = make_method("tpt", {"bank_size": 8, "retrieve": 4, "task_tokens": 3})
    [done] = adapt(small, [episode], backbone, fit(small, SOURCES, backbone, SETTINGS), SETTINGS)
    assert length_of_prompt(done.prompt, backbone) == 7


def one_episode(size: int) -> Episode:
    """Texts of so many characters, which are tokens here."""
    task = three_class("x", 2)
    splits = {
        name: tuple(replace(e, text=e.text.ljust(size, "x")) for e in examples)
        for name, examples in task.examples.items()
    }
    return make_episode(replace(task, examples=splits), 2, 13)


def test_a_bank_starts_from_words_or_from_the_tokens_of_trained_source_prompts(backbone: Backbone) -> None:
    """The released code's second way silently does nothing."""
    context, length = lab_of(backbone, SETTINGS), SETTINGS.length
    mixture = context.mixture(SOURCES, 13)
    initial, free = make_method("tpt").initial_bank(context, SOURCES, mixture, 13)  # type: ignore[attr-defined]
    words = initial.params["bank"][0]
    table = backbone.frozen.vocabulary_embeddings
    assert all(bool((table == row).all(1).any()) for row in words)
    assert free == Cost()
    taught = make_method("spot").fit(context, SOURCES, 13).params["prompt"].flatten(0, 1)
    learned = make_method("tpt", {"start": "sources", "bank_size": 16})
    initial, cost = learned.initial_bank(context, SOURCES, mixture, 13)  # type: ignore[attr-defined]
    rows = initial.params["bank"][0]
    from_prompts = [bool((taught == row).all(1).any()) for row in rows]
    assert from_prompts == [True] * 2 * length + [False] * (16 - 2 * length)
    assert not any(bool((table == row).all(1).any()) for row in rows[: 2 * length])
    assert cost.rows > 0


def test_a_frozen_bank_stays_and_the_task_prompt_moves(backbone: Backbone) -> None:
    settings = replace(SETTINGS, target=replace(SETTINGS.target, weight_decay=0.1))
    for frozen in (True, False):
        method = make_method("tpt", {"freeze_bank": frozen})
        prior = fit(method, SOURCES, backbone, settings)
        initial = method.init(lab_of(backbone, settings), [prior], [make_episode(three_class("x", 2), 4, 13)])
        assert [initial.lr_multipliers.get(n, 1.0) for n in ("bank", "keys", "centre", "own")] == [1 - frozen, 0, 0, 1]
        done = adapt(method, [make_episode(three_class("x", 2), 4, 13)], backbone, prior, settings)[0]
        numbers = {"own": 3 * backbone.width, "bank": 60 * backbone.width}
        assert done.trainable == numbers["own"] + (0 if frozen else numbers["bank"])
        if frozen:
            assert torch.equal(done.prompt.params["bank"], prior.params["bank"])


RULES: list[tuple[str, dict[str, Any]]] = [
    ("descent", {}),
    ("svgd", {"particles": 2, "jitter": 0.1}),
    ("maml", {"units_per_step": 2, "budget": "updates"}),
    ("fomaml", {"units_per_step": 2, "budget": "updates"}),
    ("reptile", {"units_per_step": 2, "budget": "updates"}),
]


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_every_rule_moves_the_bank_and_lowers_its_loss(
    backbone: Backbone, rule: str, options: dict[str, Any], tmp_path: Path
) -> None:
    longer = replace(SETTINGS, source=Training(steps=10, batch_size=6, learning_rates=(0.5,), schedule="constant"))
    method = make_method("tpt", {"rule": rule, "bank_size": 8, **({"rule_options": options} if options else {})})
    none = replace(longer, source=replace(longer.source, steps=0))
    before, after = (
        fit(method, SOURCES, backbone, s, control=RunControl(tmp_path / n)) for s, n in ((none, "0"), (longer, "1"))
    )
    for name in ("bank", "own"):
        assert not torch.equal(before.params[name], after.params[name])
    assert all(torch.equal(before.params[name], after.params[name]) for name in ("keys", "centre"))
    curve = torch.tensor(after.header.diagnostics["source_loss"]).mean(1)
    assert float(curve[-3:].mean()) < float(curve[0])
    assert len(after.params["bank"]) == (2 if rule == "svgd" else 1)
    assert ("forces" in after.header.diagnostics) == (rule == "svgd")
    done = adapt(method, [make_episode(three_class("x", 2), 2, 13)], backbone, after, replace(SETTINGS, length=6))[0]
    assert done.prompt.params["bank"].shape == (1, 8, backbone.width)


def test_particles_of_a_bank_feel_each_other(backbone: Backbone) -> None:
    def banks(**options: Any) -> Any:
        rule = {"rule": "svgd", "rule_options": {"particles": 3, **options}}
        method = make_method("tpt", {"bank_size": 8, "keys": "separate", **rule})  # keys from like texts would tie
        return fit(method, SOURCES, backbone, plain).params["bank"]

    sgd = replace(SETTINGS.source, optimiser="sgd", learning_rates=(10.0,))  # Adam makes whole steps of rounding
    plain = replace(SETTINGS, source=sgd)
    assert not torch.allclose(banks(), banks(kernel="none"), atol=1e-4)
    torch.testing.assert_close(banks(kernel="none")[0], banks(kernel="none", particles=1)[0], rtol=1e-3, atol=1e-4)


def test_options_of_a_rule_are_checked_at_once() -> None:
    with pytest.raises(SpecError, match=r"options of rule svgd.*did you mean 'particles'"):
        make_method("tpt", {"rule": "svgd", "rule_options": {"particle": 2}})
    with pytest.raises(SpecError, match=r"rule descent has no options; got particles"):
        make_method("tpt", {"rule_options": {"particles": 2}})


def lab_of(backbone: Backbone, settings: Settings) -> Any:
    from promptprior.fit import make_run_context

    return make_run_context(backbone, settings, RunControl())


def test_the_header_counts_parameters_three_ways_and_says_what_was_retrieved(backbone: Backbone) -> None:
    prior = fit(make_method("tpt_as_released"), SOURCES, backbone, SETTINGS)
    width = backbone.width
    counts = {"bank": 600 * width, "task": 100 * width, "retrieved": 100 * width}
    assert prior.header.diagnostics["parameters"] == counts
    found: Any = prior.header.diagnostics["retrieval"]
    assert found["rows"] == 600
    assert found["retrieved"] == 100
    assert found["rows_used"] + found["dead_rows"] == 600


def test_controls_do_not_look_at_what_a_text_says(backbone: Backbone) -> None:
    static: Any = fit(make_method("tpt_static"), SOURCES, backbone, SETTINGS).header.diagnostics["retrieval"]
    assert static["distinct_sets"] == 1
    assert static["overlap_within_task"] == 1
    random: Any = fit(make_method("tpt_random"), SOURCES, backbone, SETTINGS).header.diagnostics["retrieval"]
    assert random["overlap_within_task"] < 3 * random["overlap_if_random"]


def test_a_length_that_leaves_no_task_prompt_is_refused(backbone: Backbone) -> None:
    with pytest.raises(SpecError, match="leaves 0 tokens for the task prompt beside 6 retrieved ones"):
        fit(make_method("tpt", {"retrieve": 6}), SOURCES, backbone, SETTINGS)


def obeying_model() -> Backbone:
    """A model trained here to obey an order in its context, "A".."J": add 0..9 to the last symbol.

    Markers and the first symbol stand in its training texts and mean nothing to it.
    """
    torch.manual_seed(0)
    words = tokenizer()
    shape = {**LLAMA_LIKE, "hidden_size": 48, "intermediate_size": 96, "num_key_value_heads": 4}
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**shape, **ENDS))
    orders, markers, symbols = (torch.tensor(words.convert_tokens_to_ids(list(s))) for s in (ORDERS, MARKERS, SYMBOLS))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(450):
        order, marker, x, y = (torch.randint(n, (64,)) for n in (10, len(MARKERS), 10, 10))
        parts = [orders[order]] * 2 + [markers[marker]] * 5 + [symbols[y], symbols[x]]
        answer = symbols[(x + order) % 10]
        loss = torch.nn.functional.cross_entropy(model(torch.stack(parts, dim=1)).logits[:, -1], answer)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return as_backbone(freeze(model, words, "obeying"))


def skills() -> Task:
    """Each marker asks for its own shift: no single order is right for all texts."""

    def example(m: int, y: int, x: int) -> Example:
        answer = (x + SHIFTS[m]) % 10
        return Example(f"{m}{y}{x}", MARKERS[m] * 5 + SYMBOLS[y] + SYMBOLS[x], SYMBOLS[answer], tuple(SYMBOLS), answer)

    cells = [(m, y, x) for m in range(6) for y in range(10) for x in range(10)]
    test = {c for c in cells if (c[2] + 3 * c[1] + c[0]) % 5 == 0}
    splits = {
        "train": tuple(example(*c) for c in cells if c not in test),
        "validation": (),
        "test": tuple(example(*c) for c in sorted(test)),
    }
    return Task("skills", "multiple_choice", ("accuracy",), splits, target_delimiter="")  # type: ignore[arg-type]


@pytest.mark.slow
def test_where_the_right_prompt_depends_on_the_text_retrieval_wins_by_a_wide_margin() -> None:
    backbone, task = obeying_model(), skills()
    shared: dict[str, Any] = {"bank_size": 24, "task_prompt": "none"}

    def accuracy(name: str, rate: float, **options: Any) -> tuple[float, Any]:
        stage = Training(steps=200, batch_size=16, learning_rates=(rate,), schedule="constant")
        prior = fit(make_method(name, options), [task], backbone, Settings(length=2, source=stage))
        header = prior.header
        form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
        objective = PromptObjective(backbone, form)
        eval_set = make_eval_set(objective, task, task.split("test"))
        [answers] = evaluate_requests(objective, prior.params, [eval_set])
        return answers.result.scores["accuracy"], header.diagnostics.get("retrieval")

    single = max(accuracy("multitask", rate)[0] for rate in (0.3, 1.0))
    static, same = accuracy("tpt_static", 0.3, **shared)
    random, _ = accuracy("tpt_random", 0.3, **shared)
    ours, found = accuracy("tpt", 0.3, selection="weighted", **shared)
    print(f"single {single:.2f} static {static:.2f} random {random:.2f} tpt {ours:.2f} {found}")
    assert ours > 0.5
    assert ours > max(single, static, random) + 0.3
    assert same["distinct_sets"] == 1
    assert found["distinct_sets"] >= len(MARKERS)
    assert found["overlap_within_task"] < 0.3
