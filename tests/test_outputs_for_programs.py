# ruff: noqa: F811  (fixtures of test_cli)
"""What people and programs get of verbs: --json, --quiet, streams, confusion matrices, what a prompt holds."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptprior.artifacts.artifact import Header, Prompt
from promptprior.artifacts.inspect import nearest_tokens, similarities
from promptprior.backbone import Backbone
from promptprior.cli.verbs import predict_verb
from promptprior.errors import ArtifactError, DataError
from promptprior.evaluate import PromptAnswers, forgetting, make_eval_set, prompt_objective, ranked
from promptprior.tasks.loading.readers import read_data_file, stream_rows
from tests.backbone.tiny import tiny
from tests.test_cli import TINY, Cli, cli, data, model  # noqa: F401
from tests.test_own_data import own, prompt, read_csv, write_csv  # noqa: F401
from tests.world import choice_task, early


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def feed(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return feed


def test_predict_answers_in_blocks_as_it_does_at_once(
    cli: Cli, own: Path, prompt: Path, stdin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"n": str(i), "text": f"text, {i}" if i % 3 else f"two\nlines {i}"} for i in range(11)]
    write_csv(own / "many.csv", rows)
    code, whole, err = cli("predict", "--prompt", prompt, "--input", "many.csv")
    assert code == 0, err
    monkeypatch.setattr(predict_verb, "BLOCK", 3)
    answered = read_csv(whole)
    assert [row["n"] for row in answered] == [row["n"] for row in rows]

    def same(text: str) -> None:
        for one, other in zip(read_csv(text), answered, strict=True):
            assert {c: v for c, v in one.items() if "prob" not in c} == {
                c: v for c, v in other.items() if "prob" not in c
            }
            shares = [[float(v) for c, v in row.items() if "prob" in c] for row in (one, other)]
            np.testing.assert_allclose(*shares, atol=1e-4)

    same(cli("predict", "--prompt", prompt, "--input", "many.csv")[1])
    stdin((own / "many.csv").read_text())
    same(cli("predict", "--prompt", prompt, "--input", "-")[1])
    code, out, _ = cli("predict", "--prompt", prompt, "--input", "many.csv", "--output", "a.csv", "--json", "--quiet")
    same((own / "a.csv").read_text())
    said = json.loads(out)
    assert (said["rows"], said["answered"], sum(said["answers"].values())) == (11, 11, 11)
    assert sorted(path.name for path in own.iterdir() if "a.csv" in path.name) == ["a.csv", "a.csv.plan.yaml"]

    stdin("".join(json.dumps(row) + "\n" for row in rows))  # its first character says that it is JSONL
    code, out, err = cli("predict", "--prompt", prompt, "--input", "-", "--quiet")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["answer"] for line in lines] == [row["answer"] for row in answered]
    code, out, _ = cli("predict", "--prompt", prompt, "--input", "many.csv", "--json")
    assert [json.loads(line) for line in out.splitlines()] == lines


def test_what_is_wrong_far_down_is_found_before_any_answer(
    cli: Cli, own: Path, prompt: Path, stdin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_verb, "BLOCK", 2)
    write_csv(own / "long.csv", [{"text": "short"}] * 5 + [{"text": "long " * 60}])
    code, out, err = cli("predict", "--prompt", prompt, "--input", "long.csv", "--output", "a.csv")
    assert (code, out) == (2, "")
    assert "long.csv line 7" in err
    assert not (own / "a.csv").exists()
    stdin('text\nx\n"open')
    code, out, err = cli("predict", "--prompt", prompt, "--input", "-")
    assert (code, out) == (2, "")
    assert "standard input line 3: bad CSV" in err
    stdin("")
    assert "standard input: the file holds no rows" in cli("predict", "--prompt", prompt, "--input", "-")[2]
    code, _, err = cli("predict", "--prompt", prompt, "--input", "new.csv", "--input-format", "csv")
    assert code == 2
    assert "--input-format" in err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", '\ufefftext,label\n"a, ""b""\nc",0\n\nd,1\r\ne,2'),
        ("x.jsonl", '\ufeff{"text": "a\u2028b"}\n\n{"text": "c", "n": [1]}\n'),
        ("x.json", '[{"text": "a"}, {"text": "b"}, {"text": "c"}]'),
    ],
)
def test_a_stream_has_the_rows_of_the_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    whole, blocks = read_data_file(tmp_path / name), list(stream_rows(tmp_path / name, 2))
    assert [len(block) for block in blocks] == [2] * (len(whole) // 2) + [1] * (len(whole) % 2)
    assert tuple(row for block in blocks for row in block.values) == whole.values
    assert tuple(line for block in blocks for line in block.lines) == whole.lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\nok\n\xff\n", "not UTF-8"),
        (b"text\nok\n\x00\n", "line 3: a NUL character"),
        (b"text;label\nok;1\n", "separated by ';'"),
        (b"text,text\n1,2\n", "a column twice"),
        (b"text,n\n1\n", "line 2: 1 fields"),
        (b"", "no rows"),
    ],
)
def test_a_stream_refuses_what_a_file_may_not_hold(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(stream_rows(tmp_path / "x.csv", 2))


def test_evaluate_counts_answers_by_class_and_says_how_few_rows_there_are(cli: Cli, own: Path, prompt: Path) -> None:
    (own / "plain.txt").write_text("The sea was calm that day, and nobody spoke of it.\n\n" * 2 + "Too short.")
    words = ["evaluate", "--prompt", prompt, "--forgetting", "plain.txt", "--abstention"]
    code, out, err = cli(*words)
    assert code == 0, err
    assert "right \\ answered" in out
    assert "95% interval" in out
    report = json.loads(cli(*words, "--json")[1])
    counts = np.array(report["confusion"]["counts"])
    assert report["confusion"]["labels"] == ["billing", "bug", "praise"]
    assert counts.sum() == report["examples"] == 6
    assert np.trace(counts) / 6 == pytest.approx(report["scores"]["accuracy"])
    low, high = report["accuracy_interval"]
    assert low < report["scores"]["accuracy"] < high
    assert report["abstention"][-1] == [1.0, report["scores"]["accuracy"]]
    forgot = report["forgetting"]
    assert (forgot["passages"], forgot["tokens"] > 10, forgot["without"] > 0) == (2, True, True)
    assert f"{forgot['behind_prompt']:.4f} nats per token behind the prompt" in out


def test_forgetting_is_the_models_own_loss_on_the_second_halves() -> None:
    backbone = tiny("llama", torch.float64)
    header = header_of(backbone)
    value = torch.randn(1, 3, backbone.width, dtype=torch.float64) * backbone.scale
    passages = ["one two three four five six seven eight", "a b c d e f g h i j"]
    found = forgetting(Prompt(header, {"prompt": value}), backbone, "\n\n".join([*passages, "short"]))
    model, total, count = backbone.frozen.model, {0: 0.0, 3: 0.0}, 0
    for text in passages:
        words = text.split()
        half = len(words) // 2
        [tokens] = backbone.tokens([" ".join(words[:half])], [[" ".join(words[half:])]])
        ids = torch.tensor([*tokens.text, *tokens.targets[0]])
        for length in total:
            states = torch.cat([value[0, :length], backbone.frozen.embed(ids)])[None]
            logits = model(inputs_embeds=states).logits[0, length + len(tokens.text) - 1 : -1]
            total[length] += float(-logits.log_softmax(-1).gather(1, ids[len(tokens.text) :, None]).sum())
        count += len(tokens.targets[0])
    assert (found.tokens, found.passages) == (count, 2)
    assert found.without == pytest.approx(total[0] / count, rel=1e-6)
    assert found.behind_prompt == pytest.approx(total[3] / count, rel=1e-6)
    with pytest.raises(DataError, match="no paragraph of 8 words"):
        forgetting(Prompt(header, {"prompt": value}), backbone, "too short")


def header_of(backbone: Backbone) -> Header:
    return Header("prompt", "prompt_tuning", {}, "direct", {"length": 3, "width": backbone.width}, backbone.card)


def test_confusion_has_a_row_for_each_right_answer() -> None:
    task = choice_task("t", early)
    backbone = tiny("llama", torch.float32)
    examples = task.split("test")
    prompt = Prompt(header_of(backbone), {"prompt": torch.zeros(1, 3, backbone.width)})
    eval_set = make_eval_set(prompt_objective(prompt, backbone), task, examples)
    nll = [[0.0, 1.0] if i % 2 else [1.0, 0.0] for i in range(len(examples))]
    answers = PromptAnswers(eval_set, nll, ranked(eval_set, nll))
    expected = [[0, 0], [0, 0]]
    for i, example in enumerate(examples):
        expected[example.label or 0][0 if i % 2 else 1] += 1
    assert answers.confusion == expected


def test_nearest_tokens_of_an_embedding_are_itself() -> None:
    frozen = tiny("llama", torch.float32).frozen
    prompt = frozen.vocabulary_embeddings[[40, 50]].detach() * torch.tensor([[1.0], [2.0]])
    near = nearest_tokens(prompt, frozen, 2)
    for vector, token in zip(near, (40, 50), strict=True):
        assert vector["cosine"][0] == {"token": frozen.tokenizer.decode([token]), "cosine": pytest.approx(1, abs=1e-5)}
        assert vector["cosine"][0]["cosine"] > vector["cosine"][1]["cosine"]
    assert near[0]["distance"][0]["distance"] == pytest.approx(0, abs=1e-2)
    assert near[1]["norm"] / near[0]["norm"] == pytest.approx(float(prompt[1].norm() / prompt[0].norm()), rel=1e-4)


def test_prompts_are_compared_whatever_the_order_of_their_vectors() -> None:
    backbone = tiny("llama", torch.float32)
    value = torch.randn(1, 3, backbone.width)
    made = {"a": value, "turned": value.flip(1), "opposite": -value}
    prompts = {name: Prompt(header_of(backbone), {"prompt": tensor}) for name, tensor in made.items()}
    by_pair = {(pair["a"], pair["b"]): pair for pair in similarities(prompts)}
    assert by_pair["a", "turned"]["matched"] == pytest.approx(1, abs=1e-5)
    assert by_pair["a", "turned"]["cosine"] < 0.99
    assert by_pair["a", "opposite"]["cosine"] == pytest.approx(-1, abs=1e-5)
    rms = float(value.square().mean().sqrt())
    assert by_pair["a", "opposite"]["distance"] == pytest.approx(2 * rms / backbone.card.scale, rel=1e-4)
    stranger = tiny("qwen2", torch.float32)
    with pytest.raises(ArtifactError):
        similarities({**prompts, "b": Prompt(header_of(stranger), {"prompt": value})})


def test_inspect_shows_words_and_pairs(cli: Cli, own: Path, prompt: Path) -> None:
    code, out, err = cli("inspect", prompt, "--nearest", 2)
    assert code == 0, err
    assert "nearest by cosine" in out
    assert "x scale; vectors" in out
    code, out, _ = cli("inspect", f"{prompt},{prompt}/../tickets", "--json")
    report = json.loads(out)
    assert report["similarity"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert report["artifacts"][0]["header"]["method"] == "prompt_tuning"
    one = json.loads(cli("inspect", prompt, "--json", "--nearest", 1)[1])
    assert len(one["nearest"]) == one["tensors"]["prompt"]["shape"][1]


def test_every_verb_speaks_json_and_may_be_quiet(cli: Cli, own: Path, prompt: Path, model: Path) -> None:
    tasks = json.loads(cli("tasks", "list", "--json")[1])
    assert {"name", "metrics"} <= set(tasks[0])
    assert json.loads(cli("tasks", "show", "tickets.csv", "--json")[1])["label_names"] == ["billing", "bug", "praise"]
    assert json.loads(cli("tasks", "check", "tickets.csv", "--json")[1])[0]["ok"]
    assert json.loads(cli("methods", "list", "--json")[1])[0]["method"]
    assert "options" in json.loads(cli("methods", "show", "spot", "--json")[1])
    made = json.loads(cli("export", prompt, "--format", "npy", "--output", "npy", "--json")[1])
    assert made == {"output": "npy", "format": "npy"}
    shared = ["--backbone", model, *TINY, "--steps", 2, "--json", "--quiet"]
    small = ["--target", "tickets.csv", "--shots", 2, "--output", "again"]
    code, out, err = cli("adapt", "--method", "zero_shot", *small, *shared)
    assert (code, err) == (0, "")
    assert json.loads(out)["test_examples"] == 6
    grid = ["--methods", "zero_shot,prompt_tuning", "--targets", "tickets.csv", "--shots", 2, "--seeds", "13,21"]
    code, out, err = cli("compare", *grid, "--output", "grid", *shared)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["cells"], report["failed"]) == (3, 0)
    [best] = report["best"]
    assert (best["method"], best["baseline"], best["targets"]) == ("zero_shot", "prompt_tuning", 1)
    _, out, err = cli("compare", *grid, "--output", "grid", *shared[:-2])  # nothing is left to run: the same summary
    assert out == "grid/report.html\n"
    assert err.splitlines()[-1] == best["says"]
    assert json.loads(cli("report", "grid", "--json")[1])["best"] == [best]
