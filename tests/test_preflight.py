# ruff: noqa: F811  (fixtures of test_cli)
"""What is wrong is found before any work: limits, lengths, metrics, weights; and what failed is said at the end."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from promptprior.adapt import make_episode
from promptprior.backbone import load
from promptprior.cli.verbs.adapt_verb import shots_line
from promptprior.config.training import Settings, Training
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import DataError, SpecError
from promptprior.evaluate import evaluate, predict
from promptprior.methods import make_method
from promptprior.preflight import check_lengths, check_metrics, check_start, check_training_memory
from promptprior.tasks.loading.readers import read_data_file
from promptprior.tasks.task import Example
from tests.backbone.tiny import config, tiny, tokenizer
from tests.test_cli import TINY, Cli, cli, data, model, write_task  # noqa: F401
from tests.world import always, choice_task, text_task

adapting = import_module("promptprior.adapt")
SPEC = 'task: {name}\ndoc_to_text: "{{{{text}}}}"\ndoc_to_target: label\n'


def compare(data: Path, model: Path, output: Path, *more: object) -> list[object]:
    grid = ["--methods", "zero_shot,prompt_tuning", "--targets", "edges", "--shots", 2, "--seeds", 13, "--steps", 1]
    words = ["compare", "--data", data, "--backbone", model, *TINY, *grid, "--output", output]
    for flag, value in zip(more[::2], more[1::2], strict=True):  # what is given here replaces what stands there
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    return words


def adapt(data: Path, model: Path, output: Path, *more: object) -> list[object]:
    return ["adapt", "--data", data, "--target", "edges", "--shots", 2, "--backbone", model, *TINY, "--output", output,
            "--steps", 1, *more]  # fmt: skip


def refused(cli: Cli, output: Path, says: str, *words: object) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (2, ""), err
    assert says in err, err
    assert err.startswith("promptprior: ")
    assert err.count("\n") == 1
    assert not output.exists()
    assert not output.with_name(f"{output.name}.work").exists()


# Limits and shots


@pytest.mark.parametrize(
    ("verb", "flag", "value", "says"),
    [
        ("adapt", "--test-limit", -5, "(--test-limit): expected at least 0"),
        ("compare", "--test-limit", 0, "(--test-limit): expected at least 1"),
        ("compare", "--test-limit", -5, "(--test-limit): expected at least 1"),
        ("compare", "--train-limit", 0, "(--train-limit): expected at least 1"),
        ("fit", "--train-limit", 0, "(--train-limit): expected at least 1"),
        ("fit", "--train-limit", -5, "(--train-limit): expected at least 1"),
    ],
)
def test_a_limit_out_of_bounds_is_refused(
    cli: Cli, data: Path, model: Path, tmp_path: Path, verb: str, flag: str, value: int, says: str
):
    output = tmp_path / "out"
    words = {
        "adapt": adapt(data, model, output),
        "compare": compare(data, model, output),
        "fit": ["fit", "--data", data, "--sources", "vowels", "--backbone", model, "--output", output],
    }[verb]
    refused(cli, output, says, *words, flag, value)


def test_adapt_without_a_test_saves_the_prompt_and_no_score(cli: Cli, data: Path, model: Path, tmp_path: Path):
    code, out, err = cli(*adapt(data, model, tmp_path / "out", "--test-limit", 0))
    assert code == 0, err
    assert "not tested (--test-limit 0)" in out
    header = json.loads((tmp_path / "out" / "promptprior.json").read_text())
    assert header["scores"].keys() == {"dev"}
    for limit in (0, -5):
        code, _, err = cli("evaluate", "--prompt", tmp_path / "out", "--limit", limit)
        assert code == 2
        assert "(--limit): expected at least 1" in err


def test_adapt_saves_the_prompt_before_it_is_tested(
    cli: Cli, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise DataError("the test cannot be scored")

    with monkeypatch.context() as patched:
        patched.setattr(import_module("promptprior.adapt"), "score_on_test", fail)
        assert cli(*adapt(data, model, tmp_path / "out"))[0] == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert cli(*adapt(data, model, tmp_path / "out"))[0] == 0
    assert cli(*adapt(data, model, tmp_path / "new"))[0] == 0
    one, other = (json.loads((tmp_path / name / "promptprior.json").read_text()) for name in ("out", "new"))
    assert one == other


def test_adapt_says_how_many_shots_were_drawn():
    task = choice_task("easy", always(0), size=6)
    mixed = choice_task("mixed", lambda word: int(word[0] > "g"), size=16)
    assert shots_line(make_episode(task, 2, 13)) == "learned from 2 examples, 2 others for dev"
    assert "; fewer than 100 of a class were there to draw: yes 2, no 6" in shots_line(make_episode(mixed, 100, 13))
    assert "all 16" in shots_line(make_episode(text_task("said", str.upper, size=32), 100, 13))


def test_saved_plans_are_the_resolved_ones(cli: Cli, data: Path, model: Path, tmp_path: Path):
    assert cli(*adapt(data, model, tmp_path / "out"))[0] == 0
    plan = load_yaml(tmp_path / "out.plan.yaml")
    assert plan["steps"] is None
    assert plan["settings"]["target"]["steps"] == 1
    assert cli("adapt", tmp_path / "out.plan.yaml")[0] == 0
    fit = ["fit", "--data", data, "--sources", "vowels", "--steps", 1, "--backbone", model, *TINY]
    assert cli(*fit, "--output", tmp_path / "prior")[0] == 0
    plan = load_yaml(tmp_path / "prior" / "plan.yaml")
    assert (plan["steps"], plan["settings"]["source"]["steps"]) == (None, 1)


# Before training


def test_compare_finds_first_what_it_says_it_finds_first(cli: Cli, data: Path, model: Path, tmp_path: Path):
    output = tmp_path / "out"
    refused(
        cli,
        output,
        "length 100000 (--length): expected at least 1",
        *compare(data, model, output, "--length", 100000),
    )
    refused(cli, output, "start text (--start-text) is empty", *compare(data, model, output, "--start", "text"))
    edges = data / "edges" / "spec.yaml"
    three = SPEC.format(name="edges") + "doc_to_choice: [low, high, middle]\nmetric_list: [f1]\n"
    edges.write_text(three)
    refused(cli, output, "metric 'f1' needs two classes", *compare(data, model, output))
    refused(cli, output, "metric 'f1' needs two classes", *adapt(data, model, output))
    edges.write_text(SPEC.format(name="edges") + "metric_list: [exact_match, ece]\n")
    refused(cli, output, "ece", *compare(data, model, output))
    edges.unlink()
    write_task(tmp_path / "more" / "edges", "gh")
    both = f"edges,{tmp_path / 'more' / 'edges'}"
    refused(cli, output, "two tasks are called 'edges' (--targets", *compare(data, model, output, "--targets", both))
    words = compare(data, model, output, "--sources", f"vowels,{data / 'vowels'}", "--methods", "multitask")
    refused(cli, output, "two tasks are called 'vowels' (--sources", *words)


def test_texts_longer_than_the_context_are_refused(cli: Cli, data: Path, tmp_path: Path, model: Path):
    for family in ("llama", "gpt2"):
        torch.manual_seed(0)
        folder = tmp_path / family
        tf.AutoModelForCausalLM.from_config(config(family)).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        frozen = load(str(folder)).frozen
        assert frozen.context is not None
        test = data / "edges" / "test.jsonl"
        short = test.read_text()
        prompt = tmp_path / f"{family}-prompt"
        assert cli(*adapt(data, folder, prompt))[0] == 0
        long = json.dumps({"id": "long", "text": "way too long " * frozen.context, "label": "low"})
        test.write_text(short + long + "\n")
        says = "example 'long' ('way too long way too long way too long w'…): "
        output = tmp_path / "out"
        refused(cli, output, says, *compare(data, folder, output))
        refused(cli, output, says, *adapt(data, folder, output))
        refused(cli, output, says, "evaluate", "--prompt", prompt, "--target", data / "edges")
        words = ["predict", "--prompt", prompt, "--target", data / "edges", "--input", test, "--output", output]
        refused(cli, output, "test.jsonl line 9 ('way too long", *words)
        test.write_text(short)
        train = data / "vowels" / "train.jsonl"
        train.write_text(train.read_text() + long + "\n")
        fit = ["fit", "--data", data, "--sources", "vowels", "--steps", 1, "--backbone", folder, *TINY]
        refused(cli, output, says, *fit, "--output", output)
        shutil.rmtree(data / "vowels")
        write_task(data / "vowels", "ae")


def test_the_length_is_that_of_prompt_text_and_answer():
    backbone = tiny("llama")
    context = backbone.frozen.context
    assert context is not None
    task = choice_task("easy", always(0))
    [tokens] = backbone.tokens(["a b"], [["yes", "no"]], " ")
    used = len(tokens.text) + max(map(len, tokens.targets))
    example = Example("one", "a b", "yes", ("yes", "no"), 0)
    check_lengths(backbone, task, [example], context - used)
    with pytest.raises(DataError, match=rf"{context + 1} tokens with the prompt's {context - used + 1} and the answer"):
        check_lengths(backbone, task, [example], context - used + 1)
    free = text_task("said", str.upper)
    [text] = backbone.tokens(["a b"], [["A B"]], " ")
    with pytest.raises(DataError, match="6 generated"):
        check_lengths(backbone, free, [Example("one", "a b", "A B")], context - len(text.text) - free.max_gen_toks + 1)
    start = time.monotonic()
    with pytest.raises(DataError, match="10,000,003 bytes"):  # never tokenised
        check_lengths(backbone, task, [Example("one", "x" * 10_000_000, "yes", ("yes", "no"), 0)], 1)
    assert time.monotonic() - start < 2
    check_lengths(tiny("t5"), task, [Example("one", "a b " * 2000, "yes", ("yes", "no"), 0)], 1)  # relative positions


def test_starts_and_metrics():
    backbone = tiny("llama")
    check_start(backbone, Settings())
    with pytest.raises(SpecError, match="--length"):
        check_start(backbone, Settings(length=10**5))
    check_metrics(choice_task("easy", always(0)))
    check_metrics(text_task("said", str.upper))


# Weights


def test_a_backbone_whose_weights_are_missing_is_refused(cli: Cli, data: Path, model: Path, tmp_path: Path):
    output, broken = tmp_path / "out", tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1" not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    refused(cli, output, "missing", *adapt(data, broken, output))
    save_file({"x": torch.zeros(1)}, broken / "model.safetensors", metadata={"format": "pt"})
    refused(cli, output, "its weights hold 1 tensors", *adapt(data, broken, output))


# Cells that fail


@pytest.mark.parametrize(("failing", "code"), [(("prompt_tuning",), 1), (("prompt_tuning", "zero_shot"), 2)])
def test_compare_says_how_many_cells_failed(
    cli: Cli, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[str], code: int
):
    from promptprior.compare import execute

    right = execute.adapt

    def fail(method, *rest):
        if method.name in failing:
            raise RuntimeError("out of luck")
        return right(method, *rest)

    words, output = compare(data, model, tmp_path / "out"), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(execute, "adapt", fail)
        got, out, err = cli(*words, "--quiet")
    assert (got, out.strip()) == (code, str(output / "report.html"))
    assert all("failed" in line for line in err.strip().splitlines())
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"{len(failing)} of 2 cells failed")
    assert "out of luck" in last
    assert "all done" not in err
    got, _, err = cli(*words)
    assert got == 0
    assert "failed" not in err


def test_a_damaged_cost_of_a_prior_stops_before_any_work(cli: Cli, data: Path, model: Path, tmp_path: Path):
    output = tmp_path / "out"
    words = compare(data, model, output, "--methods", "multitask", "--sources", "vowels")
    assert cli(*words)[0] == 0
    (output / "results.jsonl").unlink()
    [cost] = output.glob("priors/*/cost.json")
    for damaged in ("{}", "[1]", '{"seconds": 1.0, "rows": "x", "tokens": 3}'):
        cost.write_text(damaged)
        code, _, err = cli(*words)
        assert code == 2
        assert "cost.json" in err
        assert f"delete {cost.parent}" in err
        assert not (output / "results.jsonl").exists()


@pytest.mark.slow
def test_a_wrong_address_of_ray_is_told_at_once(cli: Cli, data: Path, model: Path, tmp_path: Path):
    pytest.importorskip("ray")
    output, said = tmp_path / "out", "no Ray cluster could be reached at"
    words = [*compare(data, model, output, "--engine", "ray"), "--address"]
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        start, address = time.monotonic(), f"127.0.0.1:{closed.getsockname()[1]}"
        refused(cli, output, f"{said} {address} (--address)", *words, address)
        assert time.monotonic() - start < 10
        silent.bind(("127.0.0.1", 0))  # something listens that is not Ray
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code = "import sys; from promptprior.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, words), address]
        quick = {**os.environ, "RAY_py_gcs_connect_timeout_s": "1"}  # of 10; Ray reads it when it is imported
        done = subprocess.run(command, env=quick, capture_output=True, text=True, timeout=90)
    assert done.returncode == 2, done.stderr
    assert f"promptprior: {said} 127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_adapt_says_that_folds_learn_from_all_shots():
    episode = make_episode(choice_task("easy", always(0), size=6), 2, 13)
    assert shots_line(episode, 1) == "learned from 4 examples; 2 of them chose rate and steps before"
    assert shots_line(episode, 3) == "learned from 4 examples; 3 folds of them chose rate and steps before"


# Memory, and the same checks from Python


def test_what_would_need_more_memory_than_there_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, file = tiny("llama"), tmp_path / "x.csv"
    file.write_text("text,label\n" + "a,b\n" * 1000)
    check_training_memory(backbone, Settings(length=3), Training(), copies=4, longest=100)
    assert len(read_data_file(file)) == 1000
    with pytest.raises(SpecError, match=r"1000000000 copies of a prompt of 3 tokens.* GB of memory, and there are"):
        check_training_memory(backbone, Settings(length=3), Training(), copies=10**9, longest=100)
    with pytest.raises(SpecError, match="batches of 65536 texts"):
        check_training_memory(backbone, Settings(length=3), Training(batch_size=2**16), copies=100, longest=10**6)
    right = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PHYS_PAGES" else right(name))  # a page in all
    with pytest.raises(DataError, match=r"x\.csv: its rows would need .* GB of memory"):
        read_data_file(file)


def test_python_checks_what_the_command_line_checks():
    backbone = tiny("llama")
    context = backbone.frozen.context
    assert context is not None
    long = choice_task("easy", lambda word: 0)
    test = tuple(replace(example, text="way too long " * context) for example in long.split("test"))
    long = replace(long, examples={**long.examples, "test": test})
    settings, method = Settings(length=3, target=Training(steps=1, batch_size=2)), make_method("prompt_tuning")
    [adapted] = adapting.adapt(method, [make_episode(long, 1, 13)], backbone, settings=settings)
    for answer in (
        lambda: evaluate(adapted.prompt, long, backbone),
        lambda: predict(adapted.prompt, long, backbone, test),
        lambda: adapting.score_on_test(backbone, [adapted]),
    ):
        with pytest.raises(DataError, match="do not fit into"):
            answer()
    with pytest.raises(SpecError, match="limit -5"):
        evaluate(adapted.prompt, long, backbone, limit=-5)
    with pytest.raises(SpecError, match="--length"):
        adapting.adapt(method, [make_episode(long, 1, 13)], backbone, settings=replace(settings, length=context))
    train = tuple(replace(example, text=f"{example.text} is too long " * context) for example in long.split("train"))
    swapped = replace(long, examples={**long.examples, "train": train})
    with pytest.raises(DataError, match="do not fit into"):
        adapting.adapt(method, [make_episode(swapped, 1, 13)], backbone, settings=settings)


def test_a_relative_backbone_is_found_from_another_folder(
    cli: Cli, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(model.parent)
    assert cli(*adapt(data, Path(model.name), tmp_path / "out"))[0] == 0
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("evaluate", "--prompt", "out", "--data", data)
    assert code == 0, err
    header = json.loads((tmp_path / "out" / "promptprior.json").read_text())
    assert header["backbone"]["name"] == str(model)
