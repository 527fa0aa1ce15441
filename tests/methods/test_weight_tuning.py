"""References against transformers and PEFT themselves: plain text, plain training, and a trunk left as it was."""

import sys
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.adapted import Adapted
from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.compare import run
from promptprior.compare.plan import Plan
from promptprior.config.training import Settings, Training
from promptprior.cost_estimate import adapting_cost, target_size
from promptprior.errors import DataError, SpecError
from promptprior.evaluate import predict
from promptprior.fit import RunControl
from promptprior.methods import Episode, make_method
from promptprior.parameterisations.weights import OwnForm
from promptprior.report.results import read_rows
from promptprior.rules.rule import Info
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.task import Task
from tests.backbone.test_engine import random_batch
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, text_task

CHOICE = choice_task("target", early, ("yes", "nay"))  # answers of one length: transformers' own loss is then ours
FREE = text_task("shout", lambda word: word[:2])
TRAINED = ("lora", "bitfit", "fine_tuning")
FAMILIES = ("llama", "gpt2", "t5")


def settings(**changes: object) -> Settings:
    stage = {"steps": 4, "batch_size": 4, "learning_rates": (0.3,), "eval_every": 1, **changes}
    return Settings(length=4, target=Training(**stage))  # type: ignore[arg-type]


def adapted(name: str, backbone: Backbone, *episodes: Episode, using: Settings | None = None, **options: object):
    return adapt(make_method(name, options), episodes, backbone, None, using or settings())


def one(task: Task = CHOICE, k: int = 2, seed: int = 13) -> Episode:
    return make_episode(task, k, seed)


# Trained references --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRAINED)
def test_step_0_is_the_backbone_itself_and_training_lowers_the_loss(name: str, family: str) -> None:
    backbone = tiny(family)
    episodes = one(), one(FREE, 3, 21)
    untouched = adapted("zero_shot", backbone, *episodes)
    for reference, zero in zip(adapted(name, backbone, *episodes), untouched, strict=True):
        assert reference.curve[0]["dev_nll"] == pytest.approx(zero.curve[0]["dev_nll"], rel=1e-5)
        losses = [point["train_loss"] for point in reference.curve[1:]]
        assert losses[-1] < losses[0]
        assert reference.trainable == sum(p.numel() for p in reference.prompt.params.values()) > 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_is_what_peft_and_torch_come_to_by_themselves(family: str) -> None:
    """The same start, batches and rate through `get_peft_model`, the model's own loss and torch's AdamW."""
    backbone, episode = tiny(family), one()
    flat = settings(schedule="constant", eval_every=0, learning_rates=(0.6,))
    [ours] = adapt(make_method("lora"), [episode], backbone, None, flat)
    assert ours.learning_rate == pytest.approx(2e-3)
    [start] = adapt(make_method("lora"), [episode], backbone, None, settings(steps=0))

    modules = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[family]
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=modules, fan_in_fan_out=family == "gpt2")
    model = peft.get_peft_model(tiny(family).frozen.model, config)
    trained = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == start.prompt.params.keys()
    for name, weight in trained.items():
        weight.data.copy_(start.prompt.params[name][0])
    optimiser = torch.optim.AdamW(trained.values(), lr=2e-3, weight_decay=0.0)
    train_alongside(ours, model, optimiser, backbone)
    if ours.best_step == 4:
        for name, weight in trained.items():
            torch.testing.assert_close(ours.prompt.params[name][0], weight.data, rtol=1e-4, atol=1e-7)


def train_alongside(ours: Adapted, model: Any, optimiser: torch.optim.Optimizer, backbone: Backbone) -> None:
    """Four steps of the model's own loss, each equal to that of our run."""
    for step in range(4):
        loss = model(**plain_batch(backbone, ours.episode, step)).loss
        assert float(loss.detach()) == pytest.approx(ours.curve[step + 1]["train_loss"], rel=1e-5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def plain_batch(backbone: Backbone, episode: Episode, step: int) -> dict[str, torch.Tensor]:
    """A training batch as any script would make it: text and answer in one row, the text's labels ignored."""
    from promptprior.backbone import training_tokens
    from promptprior.tasks.sampling.draws import EpisodeDraws, Pool

    tokens = training_tokens(backbone, episode.task, episode.shots.train)
    drawn = EpisodeDraws([Pool(tokens)], 4, [episode.seed]).batch(step)
    rows = [
        (text[:n].tolist(), target[:u].tolist())
        for text, n, target, u in zip(
            drawn.text_ids, drawn.text_lengths, drawn.target_ids, drawn.target_lengths, strict=True
        )
    ]
    width = max(len(text) + len(target) for text, target in rows)
    ids = torch.tensor([[*text, *target, *[0] * (width - len(text) - len(target))] for text, target in rows])
    labels = torch.tensor([[-100] * len(x) + y + [-100] * (width - len(x) - len(y)) for x, y in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(width) < lengths(rows)[:, None]).long()}


def lengths(rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    return torch.tensor([len(text) + len(target) for text, target in rows])


def test_bitfit_moves_vectors_and_biases_where_there_are_some() -> None:
    backbone = tiny("gpt2")
    [vectors] = adapted("bitfit", backbone, one())
    [biases] = adapted("bitfit", backbone, one(), which="biases")
    norms = {n for n in vectors.prompt.params if n.endswith("ln_f.weight") or (".ln_" in n and n.endswith(".weight"))}
    assert norms
    assert vectors.prompt.params.keys() - norms == biases.prompt.params.keys()
    assert all(n.endswith(".bias") for n in biases.prompt.params)
    with pytest.raises(SpecError, match=r"no biases to train: use --options\.bitfit\.which vectors"):
        adapted("bitfit", tiny("llama"), one(), which="biases")


def test_fine_tuning_is_what_transformers_and_torch_come_to_by_themselves() -> None:
    """Every weight of the model's own training step, ties included; episodes one by one."""
    backbone, episode = tiny("gpt2"), one()
    flat = settings(schedule="constant", eval_every=0)
    [ours, _] = adapted("fine_tuning", backbone, episode, one(seed=21), using=flat)
    model = tiny("gpt2").frozen.model.requires_grad_()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.0)
    train_alongside(ours, model, optimiser, backbone)
    assert ours.trainable == sum(p.numel() for p in model.parameters())
    if ours.best_step == 4:
        for name, weight in model.named_parameters():
            torch.testing.assert_close(ours.prompt.params[name][0], weight.data, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", TRAINED)
def test_the_trunk_keeps_its_weights_and_modules_even_when_training_dies(name: str) -> None:
    backbone = tiny("llama", torch.float32)
    model = backbone.frozen.model
    before = {n: (w, w.clone()) for n, w in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]

    def die(step: int, steps: int, info: Info) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(make_method(name), [one()], backbone, None, settings(), control=RunControl(watch=lambda _: die))
    adapted(name, backbone, one())
    after = dict(model.named_parameters())
    assert all(after[n] is w and torch.equal(w, kept) for n, (w, kept) in before.items())
    assert [type(module) for module in model.modules()] == kinds
    assert not any(w.requires_grad for w in after.values())


def test_weights_are_given_back_when_what_is_asked_fails() -> None:
    trunk = OwnForm("vectors").answers(tiny("llama"))
    model = trunk.frozen.model
    name, weight = next(iter(trunk.start.items()))

    def fail(*_: object) -> None:
        assert torch.equal(attrgetter(name)(model), weight + 1)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        trunk._each_piece({name: weight + 1}, random_batch(1, 1, 1), fail)
    assert model.get_parameter(name).data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_adaptation_comes_to_the_same(name: str, tmp_path: Path) -> None:
    backbone = tiny("llama", torch.float32)

    def dies(step: int, steps: int, info: Info) -> None:
        if step == 2:
            raise KeyboardInterrupt

    def go(watch: object = None) -> list[Adapted]:
        control = RunControl(tmp_path, watch, checkpoint_seconds=0)  # type: ignore[arg-type]
        return adapt(make_method(name), [one()], backbone, None, settings(), control)

    with pytest.raises(KeyboardInterrupt):
        go(lambda _: dies)
    [resumed], [whole] = go(), adapted(name, backbone, one())
    assert all(torch.equal(value, whole.prompt.params[n]) for n, value in resumed.prompt.params.items())
    assert [p["train_loss"] for p in resumed.curve] == [p["train_loss"] for p in whole.curve]


def test_a_reference_tries_as_many_rates_as_prompts_do_around_its_own() -> None:
    grid = settings(learning_rates=(0.1, 0.3, 0.9))
    cheap = {"using": grid, "rate": 2e-3}
    [a] = adapted("lora", tiny("llama"), one(), **cheap)  # type: ignore[arg-type]
    assert a.learning_rate in (pytest.approx(2e-3 / 3), pytest.approx(2e-3), pytest.approx(6e-3))
    [b] = adapted("lora", tiny("llama"), one(), using=grid, learning_rates=(5e-4,))
    assert b.learning_rate == 5e-4
    assert a.cost.rows > 2 * b.cost.rows
    scale = tiny("llama").scale
    [c] = adapted("lora", tiny("llama"), one(), using=settings(learning_rates=(0.3 * scale,), rate_unit="absolute"))
    assert c.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_lora_is_a_peft_adapter(family: str, tmp_path: Path) -> None:
    backbone = tiny(family, torch.float32)
    easy = choice_task("sure", always(0), ("yes", "nay"))
    [made] = adapted("lora", backbone, one(easy), using=settings(learning_rates=(9.0,), schedule="constant"))
    made.prompt.save_pretrained(tmp_path)
    again = Prompt.from_pretrained(tmp_path, backbone.card)
    assert all(torch.equal(value, made.prompt.params[n].float()) for n, value in again.params.items())
    model = peft.PeftModel.from_pretrained(tiny(family, torch.float32).frozen.model, tmp_path)
    trained = {n for n, w in model.named_parameters() if ".lora_B." in n and w.abs().sum() > 0}
    assert trained
    example = CHOICE.split("test")[0]
    [prediction] = predict(made.prompt, CHOICE, backbone, [example])
    ids = backbone.frozen.tokenizer
    for nll, choice in zip(prediction.choice_nll, example.choices, strict=True):
        if family == "t5":
            rows = {"input_ids": torch.tensor([ids(example.text).input_ids])}
            labels = torch.tensor([ids(choice).input_ids])
        else:
            rows = {"input_ids": torch.tensor([ids(f"{example.text} {choice}").input_ids])}
            labels = rows["input_ids"].clone()
            labels[:, : len(example.text)] = -100
        loss = model(**rows, labels=labels).loss.detach()
        assert float(loss) * int((labels != -100).sum()) == pytest.approx(nll, rel=1e-4)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SpecError, match=r"pip install 'promptprior\[peft\]'"):
        adapted("lora", tiny("llama"), one())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha 0"),
        ({"modules": ("q_porj",)}, r"q_porj \(--options\.lora"),
        ({"modules": ("embed_tokens",)}, r"--options\.lora\.modules\): model\.embed_tokens is not linear"),
    ],
)
def test_wrong_options_of_lora_are_named(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        adapted("lora", tiny("llama"), one(), **options)


# In context ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3", "bloom"])
def test_in_context_is_the_plain_text_of_its_demonstrations(family: str) -> None:
    """Every choice's loss equals that of one ordinary string through transformers' own forward pass."""
    backbone, episode = tiny(family), one(k=3)
    [shown] = adapted("in_context", backbone, episode)
    examples = CHOICE.split("test")[:4]
    text = "".join(f"{e.text} {e.target}\n\n" for e in order_of(backbone, episode))
    for prediction, example in zip(predict(shown.prompt, CHOICE, backbone, examples), examples, strict=True):
        assert prediction.choice_nll == pytest.approx(
            [string_nll(backbone, f"{text}{example.text}", f" {choice}") for choice in example.choices], rel=1e-5
        )


def order_of(backbone: Backbone, episode: Episode):
    return make_method("in_context").demonstrations(backbone, episode)[0]  # type: ignore[attr-defined]


def string_nll(backbone: Backbone, text: str, answer: str) -> float:
    frozen = backbone.frozen
    ids = torch.tensor([frozen.tokenizer(text + answer).input_ids])
    logits = frozen.model(input_ids=ids).logits[0, :-1]
    return float(cross_entropy(logits, ids[0, 1:], reduction="none")[-len(answer) :].sum())


def test_in_context_of_an_encoder_decoder_is_the_plain_encoder_input() -> None:
    backbone, episode = tiny("t5"), one(k=2)
    [shown] = adapted("in_context", backbone, episode)
    example = CHOICE.split("test")[0]
    text = "".join(f"{e.text} {e.target}\n\n" for e in order_of(backbone, episode)) + example.text
    tokens = backbone.frozen.tokenizer
    nll = []
    for choice in example.choices:
        labels = torch.tensor([tokens(choice).input_ids])
        out = backbone.frozen.model(input_ids=torch.tensor([tokens(text).input_ids]), labels=labels)
        nll.append(float(out.loss) * labels.shape[1])
    assert predict(shown.prompt, CHOICE, backbone, [example])[0].choice_nll == pytest.approx(nll, rel=1e-5)


def test_in_context_generates_after_its_demonstrations_as_transformers_does() -> None:
    backbone, episode = tiny("llama"), one(FREE, 2)
    [shown] = adapted("in_context", backbone, episode)
    example = FREE.split("test")[0]
    text = "".join(f"{e.text} {e.target}\n\n" for e in order_of(backbone, episode)) + example.text
    ids = torch.tensor([backbone.frozen.tokenizer(text).input_ids])
    out = backbone.frozen.model.generate(input_ids=ids, max_new_tokens=FREE.max_gen_toks, do_sample=False)
    told = backbone.frozen.decode(out[0, ids.shape[1] :].tolist()).strip().splitlines() or [""]
    assert predict(shown.prompt, FREE, backbone, [example])[0].text == told[0].strip()


def test_as_many_demonstrations_as_fit_balanced_and_ordered_by_seed() -> None:
    backbone = tiny("llama", torch.float32)  # a context of 128 characters
    few, many, other = one(k=2), one(k=16), one(k=16, seed=21)
    [all_fit], [cut] = adapted("in_context", backbone, few), adapted("in_context", backbone, many)
    assert all_fit.variant == {"demonstrations": 4, "left_out": 0}
    shown, ids = make_method("in_context").demonstrations(backbone, many)  # type: ignore[attr-defined]
    size = len(many.shots.train)
    assert cut.variant == {"demonstrations": len(shown), "left_out": size - len(shown)}
    assert 4 < len(shown) < size
    longest = max(len(f"{e.text} {e.target}") for e in CHOICE.split("train"))
    assert (
        len(ids) + longest
        <= 128
        < len(ids) + longest + max(len(f"{e.text} {e.target}\n\n") for e in many.shots.train) + 8
    )
    labels = [e.label for e in shown]
    assert abs(labels.count(0) - labels.count(1)) <= 1
    assert shown == order_of(backbone, many)
    assert [e.id for e in shown] != [e.id for e in order_of(backbone, other)]
    assert len(order_of(backbone, replace(many, seed=87))) > 4
    assert len(make_method("in_context", {"most": 3}).demonstrations(backbone, many)[0]) == 3  # type: ignore[attr-defined]


def test_demonstrations_have_the_tokens_they_have_in_front_of_a_text() -> None:
    """GPT-2's way of cutting text joins two line breaks at the end of a text, and keeps them apart before a letter."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(["yes\n\n"] * 9, trainer)
    bpe = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="~")
    plain = tiny("llama")
    backbone = replace(plain, frozen=replace(plain.frozen, tokenizer=bpe))
    shown = CHOICE.split("train")[:3]
    ids = make_method("in_context").tokens(backbone, CHOICE, shown)  # type: ignore[attr-defined]
    text = "".join(f"{e.text} {e.target}\n\n" for e in shown)
    assert bpe(text).input_ids != ids
    for example in CHOICE.split("test")[:5]:
        assert bpe(text + example.text).input_ids == [*ids, *bpe(example.text).input_ids]


def test_the_cost_of_demonstrations_is_that_of_reading() -> None:
    two_shots = (target_size(tiny("llama"), CHOICE), 2, settings(steps=1000), 8)
    shown, trained = (adapting_cost(make_method(n), *two_shots) for n in ("in_context", "lora"))
    free = adapting_cost(make_method("zero_shot"), *two_shots)
    assert free < shown < 3 * free < trained / 100


def test_no_room_for_a_demonstration_is_an_error() -> None:
    long = choice_task("long", early)
    examples = {s: tuple(replace(e, text=e.text * 10) for e in some) for s, some in long.examples.items()}
    with pytest.raises(DataError, match="no demonstration fits into"):
        adapted("in_context", tiny("llama"), one(replace(long, examples=examples)))


def test_an_in_context_prompt_is_an_ordinary_prompt(tmp_path: Path) -> None:
    backbone = tiny("llama", torch.float32)
    [made] = adapted("in_context", backbone, one())
    made.prompt.save_pretrained(tmp_path)
    assert made.trainable == 0
    assert peft.PeftConfig.from_pretrained(tmp_path).num_virtual_tokens == made.prompt.params["prompt"].shape[1]
    again = replace(made, prompt=Prompt.from_pretrained(tmp_path, backbone.card))
    assert score_on_test(backbone, [again]) == score_on_test(backbone, [made])


# Together ------------------------------------------------------------------------------------------------


def test_compare_pairs_references_with_prompts_by_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"target": CHOICE, "shout": FREE}
    monkeypatch.setattr(run, "load_task", lambda name, *_: tasks[name])
    monkeypatch.setattr(run, "missing_tasks", lambda *_: [])
    names = ("zero_shot", "prompt_tuning", "lora", "bitfit", "in_context")
    plan = Plan(names, targets=tuple(tasks), shots=(2,), seeds=(13, 21), settings=settings(steps=2), output=tmp_path)
    page = run.compare(plan, tiny("llama", torch.float32), lambda _: None)
    rows = read_rows(tmp_path / run.RESULTS)
    assert all(row.is_ok for row in rows), [row.error for row in rows]
    assert len(rows) == 2 + 4 * 2 * 2
    draws = {(r.target, r.k, r.seed): r.shots for r in rows if r.method == "prompt_tuning"}
    for row in rows:
        if row.k:
            assert row.shots == draws[row.target, row.k, row.seed]
            assert row.cost.rows > 0
            assert row.cost.tokens > 0
    sizes = {row.method: row.parameters for row in rows}
    assert sizes["lora"].trainable == sizes["lora"].stored > 0
    assert (sizes["in_context"].trainable, sizes["in_context"].stored > 0) == (0, True)
    assert all(name in page.read_text() for name in names)


def test_weights_of_several_copies_are_lent_apart() -> None:
    """Rows of copies that stand mixed in one batch come back in their own order."""
    from promptprior.backbone import training_tokens
    from promptprior.objectives.weight_objective import objective_of

    backbone = tiny("llama")
    [a, b] = adapted("bitfit", backbone, one(), one(seed=21), using=settings(learning_rates=(3.0,)))
    params = {n: torch.cat([v, b.prompt.params[n]]) for n, v in a.prompt.params.items()}
    objective = objective_of(backbone, make_form(a.prompt, backbone))
    tokens = training_tokens(backbone, CHOICE, CHOICE.split("test")[:4])
    mixed = objective.losses(params, collate(tokens, [1, 0, 1, 0]))
    for copy, places in ((0, [1, 3]), (1, [0, 2])):
        alone = objective.losses(params, collate([tokens[p] for p in places], [copy] * 2))
        torch.testing.assert_close(mixed[places], alone)
    assert not torch.allclose(mixed, objective.losses(params, collate(tokens, [0] * 4)))


def make_form(prompt: Prompt, backbone: Backbone):
    from promptprior.parameterisations.registry import parameterisation

    header = prompt.header
    return parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
