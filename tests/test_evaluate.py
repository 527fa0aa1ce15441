"""Scores against the slow twin: ranking by brute force, greedy text token by token."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from promptprior.backbone.engine import Backbone
from promptprior.backbone.forward.reference import reference_losses
from promptprior.evaluate import EvalSet, dev_scores, eval_set_losses, evaluate_requests, make_eval_set, predictions_of
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.metrics import Prediction
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import TrueFloat64, tiny
from tests.world import choice_task, early, text_task

LENGTH, COPIES = 3, 2
LONG = ("yes", "nay", "or so", "hmm")


@pytest.fixture(autouse=True)
def true_float64():
    with TrueFloat64():
        yield


def world(family: str = "llama", **options: int) -> tuple[PromptObjective, Params]:
    backbone = tiny(family, **options)
    g = torch.Generator().manual_seed(3)
    prompts = torch.randn(COPIES, LENGTH, backbone.width, generator=g, dtype=torch.float64) * backbone.scale
    return PromptObjective(backbone, Direct(LENGTH, backbone.width)), {"prompt": prompts}


def predictions(objective: PromptObjective, params: Params, eval_sets: list[EvalSet]) -> list[list[Prediction]]:
    return predictions_of(objective, params, eval_sets, eval_set_losses(objective, params, eval_sets))


def brute_force(backbone: Backbone, prompt: torch.Tensor, task: Task, example: Example) -> list[float]:
    """Summed NLL of every choice, one plain forward pass each."""
    spaced = [("" if backbone.frozen.card.is_encoder_decoder else task.target_delimiter) + c for c in example.choices]
    out = []
    for choice in spaced:
        ids = tuple(backbone.frozen.alone(choice))
        batch = collate([Tokens(tuple(backbone.frozen.alone(example.text)), (ids,))])
        out.append(float(reference_losses(backbone.frozen, prompt[None], batch)) * len(ids))
    return out


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_ranking_is_what_one_forward_pass_per_choice_says(family: str) -> None:
    objective, params = world(family)
    task = choice_task("long", lambda w: len(w) % 4, LONG, size=6)
    eval_sets = [make_eval_set(objective, task, task.split("test"), copy=c) for c in range(COPIES)]
    results = [one.result for one in evaluate_requests(objective, params, eval_sets)]
    answers = predictions(objective, params, eval_sets)
    for copy in range(COPIES):
        sums = [brute_force(objective.backbone, params["prompt"][copy], task, e) for e in eval_sets[copy].examples]
        for prediction, expected, example in zip(answers[copy], sums, eval_sets[copy].examples, strict=True):
            assert prediction.choice_nll == pytest.approx(expected, abs=1e-9)
            assert prediction.choice == min(range(4), key=expected.__getitem__)
            assert prediction.text == example.choices[prediction.choice]
            assert prediction.choice_tokens == tuple(len(c) + (family == "llama") for c in LONG)
        right = [
            s[e.label or 0] + math.log(sum(math.exp(-v) for v in s))
            for s, e in zip(sums, eval_sets[0].examples, strict=True)
        ]
        assert results[copy].nll == pytest.approx(sum(right) / len(right), abs=1e-9)
        hits = [p.choice == e.label for p, e in zip(answers[copy], eval_sets[copy].examples, strict=True)]
        assert results[copy].scores["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert len({p.choice for p in answers[0]} | {p.choice for p in answers[1]}) > 1


def test_scores_do_not_depend_on_order_chunks_or_company(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, params = world()
    small, _ = world(max_tokens=30)
    task, other = choice_task("long", lambda w: len(w) % 4, LONG, size=8), text_task("text", str.upper, size=3)
    eval_set = make_eval_set(objective, task, task.split("test"), copy=1)
    expected = predictions(objective, params, [eval_set])[0]
    backwards = replace(eval_set, examples=eval_set.examples[::-1], tokens=eval_set.tokens[::-1])
    monkeypatch.setattr(sys.modules["promptprior.evaluate"], "TEXTS_AT_ONCE", 3)
    company = make_eval_set(objective, other, other.split("test"), copy=0)
    for found in (
        predictions(small, params, [eval_set])[0],
        predictions(objective, params, [backwards])[0][::-1],
        predictions(small, params, [company, eval_set])[1],
    ):
        assert [(p.example_id, p.choice) for p in found] == [(p.example_id, p.choice) for p in expected]
        for one, two in zip(found, expected, strict=True):
            assert one.choice_nll == pytest.approx(two.choice_nll, abs=1e-9)


def test_free_text_is_selected_by_the_loss_per_token_of_the_right_answer() -> None:
    objective, params = world()
    task = text_task("shout", str.upper, size=4)
    eval_sets = [make_eval_set(objective, task, task.split("test"), copy=c) for c in range(COPIES)]
    score, nll = dev_scores(objective, eval_sets, params)
    assert score.tolist() == [0, 0]
    for copy in range(COPIES):
        rows = reference_losses(
            objective.backbone.frozen, params["prompt"][copy : copy + 1], collate(eval_sets[copy].tokens)
        )
        assert float(nll[copy]) == pytest.approx(float(rows.mean()), abs=1e-9)
    assert evaluate_requests(objective, params, eval_sets, generate=False)[0].result.scores == {}
    assert eval_sets[0].tokens[0].targets[0][-1] == objective.backbone.frozen.tokenizer.eos_token_id


def greedy(backbone: Backbone, prompt: torch.Tensor, text: str, count: int) -> str:
    """Greedy text by a whole forward pass per token."""
    frozen = backbone.frozen
    ids, made = frozen.alone(text), []
    for _ in range(count):
        if frozen.card.is_encoder_decoder:
            embeds = torch.cat([prompt, frozen.embed(torch.tensor(ids))])[None]
            before = torch.tensor([[frozen.model.config.decoder_start_token_id, *made]])
            logits = frozen.model(inputs_embeds=embeds, decoder_input_ids=before).logits[0, -1]
        else:
            embeds = torch.cat([prompt, frozen.embed(torch.tensor([*ids, *made]))])[None]
            logits = frozen.model(inputs_embeds=embeds, use_cache=False).logits[0, -1]
        made.append(int(logits.argmax()))
        if made[-1] == frozen.tokenizer.eos_token_id:
            break
    return frozen.decode(made)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "t5"])
def test_generated_text_is_greedy_whatever_the_padding(family: str) -> None:
    objective, params = world(family)
    backbone = objective.backbone
    texts = ["a", "some longer text", "mid one", "zz top"]
    batch = collate(backbone.tokens(texts, [["x"]] * 4), [0, 1, 1, 0])
    found = backbone.generate(params["prompt"], batch, max_new_tokens=7)
    expected = [greedy(backbone, params["prompt"][c], t, 7) for t, c in zip(texts, [0, 1, 1, 0], strict=True)]
    assert found == expected
    assert len(set(found)) > 1
    small = tiny(family, max_tokens=20)
    assert small.generate(params["prompt"], batch, max_new_tokens=7) == expected


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_as_many_beams_as_words_find_the_likeliest_pair(family: str) -> None:
    objective, params = world(family)
    backbone = objective.backbone
    items = backbone.tokens(["a", "some longer text"], [["x"]] * 2)

    def nll(texts: list[str]) -> torch.Tensor:
        targets = tuple(tuple(backbone.frozen.alone(t)) for t in texts)
        losses = backbone.losses(params["prompt"], collate([replace(i, targets=targets) for i in items]))
        return 2 * losses.view(len(items), -1)

    batch = collate(items)
    one, all_pairs = (backbone.generate(params["prompt"], batch, 2, beams) for beams in (1, 96))
    assert all(len(t) == 2 for t in one + all_pairs), "an end token or a special one: choose another seed"
    g = torch.Generator().manual_seed(5)
    others = ["".join(map(chr, pair)) for pair in torch.randint(32, 127, (300, 2), generator=g).tolist()]
    assert bool((nll(all_pairs).diag()[:, None] <= nll(one + others) + 1e-9).all())


def test_an_empty_answer_is_wrong_and_the_first_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, params = world()
    task = text_task("shout", str.upper, size=3)
    eval_set = make_eval_set(objective, task, task.split("test"))
    right = eval_set.examples[1].target
    monkeypatch.setattr(Backbone, "generate", lambda *_, **__: ["", f" {right} \nand more", "\n \n"])
    assert [p.text for p in predictions(objective, params, [eval_set])[0]] == ["", right, ""]
    assert evaluate_requests(objective, params, [eval_set])[0].result.scores["exact_match"] == pytest.approx(1 / 3)


def test_generation_reads_the_prompt_of_each_evaluation_set() -> None:
    objective, params = world()
    task = text_task("shout", str.upper, size=3)
    eval_sets = [make_eval_set(objective, task, task.split("test"), copy=c) for c in (1, 0)]
    answers = predictions(objective, params, eval_sets)
    for eval_set, given in zip(eval_sets, answers, strict=True):
        for example, prediction in zip(eval_set.examples, given, strict=True):
            text = greedy(objective.backbone, params["prompt"][eval_set.copy], example.text, task.max_gen_toks)
            assert prediction.text == (text.strip().splitlines() or [""])[0].strip()
            assert prediction.choice is None


def test_evaluation_sets_hold_every_choice_or_the_right_answer() -> None:
    objective, _ = world()
    choices = choice_task("c", early, size=2)
    free = text_task("t", str.upper, size=2)
    assert all(len(t.targets) == 2 for t in make_eval_set(objective, choices, choices.split("test")).tokens)
    eval_set = make_eval_set(objective, free, free.split("test"), copy=1, task_index=2)
    assert all(len(t.targets) == 1 for t in eval_set.tokens)
    assert isinstance(eval_set, EvalSet)
    assert (eval_set.copy, eval_set.task_index) == (1, 2)
