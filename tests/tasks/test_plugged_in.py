"""Tasks and metrics that other packages declare."""

import subprocess
import sys
from pathlib import Path

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks import Task, available, load_task
from promptprior.tasks.loading.new_rows import unlabelled_task
from promptprior.tasks.loading.readers import rows_of
from promptprior.tasks.loading.spec import spec_from
from promptprior.tasks.metrics import METRICS, Metric, Prediction, metric, score
from promptprior.tasks.task import SPLITS, Example
from tests.installed import install

TASKS = """
from pathlib import Path
from promptprior.tasks import Example, Task

def parity():
    rows = [Example(str(n), f"Number: {n}", ("even", "odd")[n % 2], ("even", "odd"), n % 2) for n in range(30)]
    splits = {"train": tuple(rows[:20]), "validation": tuple(rows[20:25]), "test": tuple(rows[25:])}
    return Task("parity", "multiple_choice", ("accuracy",), splits, label_names=("even", "odd"), origin="made up")

ECHO = {
    "doc_to_text": "{{text}}", "doc_to_target": "{{text}}", "dataset_path": "csv",
    "dataset_kwargs": {"data_files": str(Path(__file__).with_name("echo.csv"))}, "metadata": {"family": "copying"},
}
"""


def points(**names: str) -> str:
    return "[promptprior.tasks]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch, tmp_path, "more-tasks", points(parity="more_tasks:parity", echo="more_tasks:ECHO"), TASKS)
    (tmp_path / "echo.csv").write_text("text\n" + "".join(f"word {i}\n" for i in range(40)))
    return tmp_path


def test_a_package_gives_a_task_or_a_spec(package: Path) -> None:
    assert load_task("parity").split("test")[0].text == "Number: 25"
    assert load_task("parity", package).fingerprint == load_task("parity").fingerprint
    echo = load_task("echo")
    assert (echo.name, echo.family) == ("echo", "copying")
    assert sorted(len(echo.split(name)) for name in SPLITS) == [4, 4, 32]
    assert "entry point 'echo' (more_tasks:ECHO, group promptprior.tasks, package more-tasks)" in echo.origin


def test_they_are_listed_and_suggested(package: Path) -> None:
    cards = {card.name: card for card in available()}
    assert (cards["parity"].source, cards["parity"].sizes["train"], cards["parity"].labels) == ("package", 20, 2)
    assert (cards["echo"].family, cards["echo"].output_type) == ("copying", "generate_until")
    with pytest.raises(SpecError, match="unknown task 'paritty'; did you mean 'parity'"):
        load_task("paritty")
    with pytest.raises(DataError, match="unknown task 'paritty'; did you mean 'parity'"):
        load_task("paritty", package)


@pytest.mark.usefixtures("package")
def test_rows_without_answers_are_read_by_a_packages_task() -> None:
    parity, indices = unlabelled_task("parity", rows_of([{"text": "Number: 7"}], "x"))
    assert (parity.split("test")[0].choices, indices) == (("even", "odd"), [0])
    assert unlabelled_task("echo", rows_of([{"text": "hi"}], "x"))[0].split("test")[0].text == "hi"


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("article", "A = 1", "'article' .* of package bad-tasks has a name that promptprior itself defines"),
        ("sst2", "A = 1", "'sst2' .* of package bad-tasks has a name that promptprior itself defines"),
        ("mine", "A = 1", r"'mine' .*package bad-tasks\): expected a callable that returns a Task, or a mapping with"),
        (
            "mine",
            "def A(): return 3",
            "expected a callable that returns a Task, or a mapping with a spec's keys, got 3",
        ),
        ("mine", "A = {'doc_to_txt': 'a'}", r"package bad-tasks\): unknown key 'doc_to_txt'; did you mean 'doc_to_tex"),
        ("mine", "A = {'doc_to_text': 'a', 'doc_to_target': 'b'}", r"'mine' names no Hub data set"),
        (
            "other",
            "A = {'task': 'mine', 'doc_to_text': 'a', 'doc_to_target': 'b'}",
            "gives a task named 'mine'; the two",
        ),
        ("other", TASKS.replace("def parity", "def A"), "gives a task named 'parity'; the two names must agree"),
    ],
)
def test_what_a_package_may_not_declare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str, message: str
) -> None:
    install(monkeypatch, tmp_path, "bad-tasks", points(**{name: "bad_tasks:A"}), code)
    with pytest.raises(SpecError, match=message):
        load_task(name if name in ("mine", "other") else "unknown")


METRIC = """
from promptprior.tasks.metrics import Metric
SHORT = Metric(lambda answers: sum(len(p.text) < 4 for p in answers.predictions) / len(answers.predictions))
"""


def test_a_metric_of_a_package_is_scored_and_named_in_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = "[promptprior.metrics]\nbrevity = more_metrics:SHORT\nwrong = more_metrics:Metric\n"
    install(monkeypatch, tmp_path, "more-metrics", declared, METRIC)
    examples = (Example("0", "t", "a"), Example("1", "t", "b"))
    task = Task("t", "generate_until", ("brevity", "exact_match"), {"test": examples})
    assert score(task, examples, [Prediction("0", "a"), Prediction("1", "too long")]) == {
        "brevity": 0.5,
        "exact_match": 0.5,
    }
    assert isinstance(metric("brevity"), Metric)
    keys = {"task": "t", "doc_to_text": "a", "doc_to_target": "b", "metric_list": ["brevity"]}
    assert spec_from(keys, "x").metrics == ("brevity",)
    with pytest.raises(SpecError, match="metric_list: unknown metric 'brevty'; did you mean 'brevity'"):
        spec_from({**keys, "metric_list": ["brevty"]}, "x")
    with pytest.raises(
        SpecError, match=r"'wrong' \(more_metrics:Metric.*package more-metrics\) is .*; expected a prom"
    ):
        metric("wrong")


def test_a_metric_of_ours_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "more-metrics", "[promptprior.metrics]\naccuracy = more_metrics:SHORT\n", METRIC)
    assert metric("accuracy") is METRICS["accuracy"]  # packages are read when an unknown name is asked for
    with pytest.raises(SpecError, match=r"'accuracy' .* of package more-metrics has a name that promptprior itself"):
        metric("acuracy")


def test_tasks_specs_and_metrics_need_neither_torch_nor_the_libraries_of_metrics() -> None:
    code = (
        "import sys; from promptprior.tasks import load_task; from promptprior.tasks.metrics import METRICS; "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'sacrebleu', 'rouge_score') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
