"""The real lm-evaluation-harness comes to our zero-shot numbers: on what we write for it, and on a task of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from promptprior.adapt import adapt, make_episode
from promptprior.backbone import Backbone, load
from promptprior.errors import SpecError
from promptprior.evaluate import PromptAnswers, PromptRequest, answer_requests
from promptprior.methods import make_method
from promptprior.tasks import load_task
from promptprior.tasks.loading.lm_eval import to_lm_eval, write_lm_eval
from promptprior.tasks.loading.load import catalogue_spec
from promptprior.tasks.metrics import squad_normalised
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import config, tokenizer
from tests.world import short, words

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'promptprior[test]' or lm_eval")
OUR_NAMES = {"acc": "accuracy", "mcc": "matthews_correlation"}
Runs = tuple[Mapping[str, Any], Mapping[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in float32 whose attention is far from uniform, so that its answers differ by text."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    made = tf.AutoModelForCausalLM.from_config(config("llama"))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(model: Path) -> Backbone:
    return load(str(model), dtype="float32", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package datasets keeps what it reads; here in a folder that goes with the tests, and without a network."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def lm_eval_of(model: Path, folder: Path, names: Sequence[str]) -> Runs:
    """The metrics of each task, and for each of its rows what lm-eval made of it."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    run = simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=8),
        tasks=list(names),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    return run["results"], run["samples"]


def ours_of(backbone: Backbone, task: Task) -> PromptAnswers:
    """The answers of the method zero_shot to the test rows."""
    settings = short()
    [adapted] = adapt(make_method("zero_shot"), [make_episode(task, 1, 13, settings)], backbone, None, settings)
    [answers] = answer_requests(backbone, [PromptRequest(adapted.prompt, task, task.split("test"))])
    return answers


def check_equal(runs: Runs, task: Task, answers: PromptAnswers, metrics: int) -> None:
    """Metrics are equal, and log-likelihoods of every choice to within float32."""
    results, samples = runs
    theirs = {name.split(",")[0]: value for name, value in results[task.name].items() if "stderr" not in name}
    compared = {OUR_NAMES.get(name, name): v for name, v in theirs.items() if OUR_NAMES.get(name, name) in task.metrics}
    assert len(compared) == metrics, theirs
    for name, value in compared.items():
        assert value == pytest.approx(answers.result.scores[name], abs=1e-12), f"{task.name}: {name}"
    rows = sorted(samples[task.name], key=lambda row: row["doc_id"])
    assert len(rows) == len(answers.nll) >= 12
    for row, nll, prediction in zip(rows, answers.nll, answers.predictions, strict=True):
        if task.is_choice:
            log_likelihoods = [float(response[0][0]) for response in row["resps"]]
            assert log_likelihoods == pytest.approx([-value for value in nll], abs=1e-4)
        else:
            assert row["filtered_resps"] == [prediction.text]


def write_rows(folder: Path, rows: Sequence[Mapping[str, object]], test: int = 16) -> dict[str, str]:
    """Rows as two files, and what dataset_kwargs.data_files calls them."""
    folder.mkdir(parents=True)
    for split, part in {"train": rows[test:], "test": rows[:test]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {"train": "train.jsonl", "test": "test.jsonl"}


def rows_of(name: str) -> list[dict[str, object]]:
    """Rows with the columns that a task's Hub data set has."""
    many = iter(words(name, 400))
    made = []
    for i in range(24):
        a, b, c, d = (f"{next(many)} {next(many)}" for _ in range(4))
        made.append(
            {
                "sst2": {"sentence": a, "label": i % 2},
                "mrpc": {"sentence1": a, "sentence2": b, "label": i % 3 % 2},
                "copa": {"premise": f"{a}.", "question": "cause", "choice1": b, "choice2": c + d, "label": i % 2},
            }[name]
        )
    return made


def test_specs_that_we_write_score_the_same_there(model: Path, backbone: Backbone, tmp_path: Path) -> None:
    """A list of choices; two sentences, with F1; choices of each row by a template, normalised by their length."""
    metrics = {"sst2": ("accuracy",), "mrpc": ("accuracy", "f1"), "copa": ("accuracy", "acc_norm")}
    tasks = []
    for name, wanted in metrics.items():
        files = write_rows(tmp_path / "data" / name, rows_of(name))
        spec = replace(
            catalogue_spec(name),
            metrics=wanted,
            dataset_path="json",
            dataset_name=None,
            dataset_kwargs={"data_files": files},
            where=str(tmp_path / "data" / name / "spec.yaml"),
        )
        (tmp_path / f"{name}.yaml").write_text(to_lm_eval(spec))
        tasks.append(load_task(tmp_path / f"{name}.yaml"))  # what we read is what it reads
    runs = lm_eval_of(model, tmp_path, [*metrics])
    for task in tasks:
        check_equal(runs, task, ours_of(backbone, task), metrics=len(metrics[task.name]))
    scores = [score for task in tasks for score in ours_of(backbone, task).result.scores.values()]
    assert len({round(score, 3) for score in scores}) > 3, "a model that answers everything alike shows nothing"


def test_any_task_is_written_with_its_rows(model: Path, backbone: Backbone, tmp_path: Path) -> None:
    """Texts that end in spaces, and free text of which half of the answers are right."""
    texts = words("spaced", 40)
    ends = ("", " ", "\n", "  ")
    spaced = tuple(
        Example(f"s{i}", text + ends[i % 4], ("yes", "or no")[i % 2], ("yes", "or no"), i % 2)
        for i, text in enumerate(texts)
    )
    choice = Task(
        "spaced", "multiple_choice", ("accuracy", "acc_norm", "matthews_correlation", "macro_f1"),
        {"train": spaced[:20], "test": spaced[20:]}, label_names=("yes", "or no"),
    )  # fmt: skip
    asked = tuple(Example(f"f{i}", f"{text} ", "x", references=("x",)) for i, text in enumerate(texts))
    free = Task("free", "generate_until", ("exact_match",), {"train": asked[:20], "test": asked[20:]}, max_gen_toks=6)
    said = [prediction.text for prediction in ours_of(backbone, free).predictions]
    forms = (str.upper, lambda t: f"The {t}!", lambda t: f"{t}x", lambda t: f"not {t}")
    known = tuple(
        replace(example, target=answer, references=(answer, "other"))
        for i, example in enumerate(asked[20:])
        if squad_normalised(answer := forms[i % 4](said[i]))  # others are refused
    )
    free = replace(free, examples={"train": asked[:20], "test": known})
    for task in (choice, free):
        write_lm_eval(task, tmp_path / task.name)
    runs = lm_eval_of(model, tmp_path, ["spaced", "free"])
    check_equal(runs, choice, ours_of(backbone, choice), metrics=3)
    check_equal(runs, free, ours_of(backbone, free), metrics=1)
    assert 0 < ours_of(backbone, free).result.scores["exact_match"] < 1
    for task in (choice, free):  # and it reads back as what it was
        again, now = ours_of(backbone, load_task(tmp_path / task.name)), ours_of(backbone, task)
        assert (again.nll, again.predictions) == (now.nll, now.predictions)
        assert again.result.scores == now.result.scores


THEIRS = """
tag: [some_suite]
task: weather
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {training: FOLDER/train.jsonl, held_out: FOLDER/test.jsonl}}
output_type: multiple_choice
training_split: training
validation_split: null
test_split: held_out
num_fewshot: 0
description: "About {{place}}.\\n"
doc_to_text: question
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def test_a_task_of_theirs_scores_the_same_here(model: Path, backbone: Backbone, tmp_path: Path) -> None:
    many = iter(words("weather", 200))
    rows = [
        {
            "place": next(many),
            "question": f"{next(many)}?",
            "choices": {"text": [next(many) for _ in range(3)], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(24)
    ]
    write_rows(tmp_path / "data", rows)
    (tmp_path / "weather.yaml").write_text(THEIRS.replace("FOLDER", str(tmp_path / "data")))
    task = load_task(tmp_path / "weather.yaml")
    assert len(task.split("test")) == 16
    assert task.split("test")[0].text == f"About {rows[0]['place']}.\n{rows[0]['question']}"
    check_equal(lm_eval_of(model, tmp_path, ["weather"]), task, ours_of(backbone, task), metrics=2)


@pytest.mark.parametrize(
    ("changes", "examples", "reason"),
    [
        ({"target_delimiter": " => "}, (Example("1", "a ", "x", ("x", "y"), 0),), "end in spaces.*' => '"),
        ({"metrics": ("macro_f1",)}, (Example("1", "a", "x", ("x", "y"), 0),), "none of the metrics macro_f1"),
        ({}, (Example("1", "2020-01-31", "x", ("x", "y"), 0),), "all texts or answers are dates"),
        ({"output_type": "generate_until", "metrics": ("exact_match",)}, (Example("1", "a", "+"),), "row 1: .*'\\+'"),
    ],
)
def test_tasks_it_would_score_differently_are_refused(
    changes: dict[str, Any], examples: tuple[Example, ...], reason: str, tmp_path: Path
) -> None:
    task = replace(Task("t", "multiple_choice", ("accuracy",), {"test": examples}), **changes)
    with pytest.raises(SpecError, match=f"task 't' cannot be written for lm-eval: .*{reason}"):
        write_lm_eval(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
