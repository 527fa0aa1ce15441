"""The command line from end to end on a tiny model: every verb, every kind of bad input, help, kill and resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from promptprior.cli import main
from promptprior.cli.arguments import read_words
from promptprior.cli.entry import read_settings
from promptprior.cli.verb import PLUGINS, VERBS, Verb, find_verb
from promptprior.compare.plan import Plan
from promptprior.compare.run import ComparisonOutcome
from promptprior.config.mapping import list_settings
from promptprior.config.training import setting
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError
from promptprior.methods import METHODS
from promptprior.report.similarity_gain import read_similarity
from promptprior.tasks import builtin
from tests.backbone.tiny import saved_model

REPOSITORY = Path(__file__).parents[1]
TINY = ("--dtype", "float32", "--length", "3", "--source.batch-size", "4", "--target.batch-size", "2")
SPLITS = {"train": 24, "validation": 6, "test": 8}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, letters in {"vowels": "ae", "sounds": "st", "edges": "xz", "other": "kl"}.items():
        write_task(tmp_path / "data" / name, letters)
    return tmp_path / "data"


def write_task(folder: Path, letters: str) -> None:
    """Which of two letters a row's text holds."""
    folder.mkdir(parents=True)
    for split, count in SPLITS.items():
        rows = [row(split, i, letters) for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def row(split: str, i: int, letters: str) -> dict[str, object]:
    return {"id": f"{split}-{i}", "text": f"{split} {letters[i % 2] * 3} {i}", "label": ("low", "high")[i % 2]}


def fit_prior(folder: Path) -> list[str]:
    """A prior of one step in folder/prior; gives the words that adapting it to the task `edges` shares with this."""
    for name, letters in {"vowels": "ae", "edges": "xz"}.items():
        write_task(folder / "data" / name, letters)
    common = ["--data", folder / "data", "--backbone", saved_model(folder / "model", seed=0), *TINY]
    fitting = ["fit", *common, "--sources", "vowels", "--steps", 1, "--output", folder / "prior"]
    assert main([str(w) for w in fitting]) == 0
    return [str(w) for w in common]


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def compare_words(data: Path, model: Path, output: Path) -> list[object]:
    lists = ["--methods", "prompt_tuning,multitask", "--sources", "vowels,sounds", "--targets", "edges,other"]
    sizes = ["--shots", "2", "--seeds", "13,21", "--steps", "2", "--test-limit", "4"]
    return ["compare", "--data", data, *lists, *sizes, "--backbone", model, *TINY, "--output", output]


def rows_of(output: Path) -> dict[str, dict[str, object]]:
    """Result rows by cell, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("seconds", "source_seconds"):
            line["cost"].pop(key)
    assert len({line["cell"] for line in lines}) == len(lines), "a cell stands there twice"
    return {line["cell"]: line for line in lines}


# Verbs --------------------------------------------------------------------------------------------------


def test_fit_adapt_evaluate_predict_inspect(cli: Cli, data: Path, model: Path, tmp_path: Path):
    prior, prompt, answers = tmp_path / "prior", tmp_path / "prompt", tmp_path / "answers.jsonl"
    code, out, err = cli(
        "fit", "--data", data, "--sources", "vowels,sounds", "--steps", 2, "--backbone", model, *TINY, "--output", prior
    )
    assert (code, out.strip()) == (0, str(prior / "prior")), err
    assert load_yaml(prior / "plan.yaml")["sources"] == ["vowels", "sounds"]

    adapt = ["adapt", "--prior", prior, "--data", data, "--target", "edges", "--shots", 2, "--dtype", "float32"]
    code, out, err = cli(*adapt, "--target.steps", 2, "--output", prompt)
    assert code == 0, err
    assert "learned from 4 examples, 4 others for dev\n" in out
    assert re.search(r"dev 0\.\d+ at step \d\ntest accuracy .*  of 8 test rows\n", out)
    header = json.loads((prompt / "promptprior.json").read_text())
    assert (header["method"], header["settings"]["length"]) == ("multitask", 3)  # the prior's own
    assert (prompt / "adapter_config.json").exists()
    assert not (tmp_path / "prompt.work").exists()

    evaluate = ["evaluate", "--prompt", prompt, "--data", data, "--dtype", "float32"]
    code, out, err = cli(*evaluate, "--json")
    assert code == 0, err
    assert json.loads(out)["scores"] == pytest.approx(header["scores"]["test"])
    code, out, _ = cli(*evaluate, "--split", "validation")
    assert out.startswith("edges, 6 validation rows\naccuracy ")

    unlabelled = tmp_path / "rows.jsonl"
    unlabelled.write_text('{"id": "a", "text": "test xxx 1"}\n{"text": "anything"}\n')
    predict = ["predict", "--prompt", prompt, "--data", data, "--dtype", "float32", "--input", unlabelled]
    code, _, err = cli(*predict, "--output", answers)
    assert code == 0, err
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(a.get("id"), a["text"]) for a in found] == [("a", "test xxx 1"), (None, "anything")]
    assert {a["answer"] for a in found} <= {"low", "high"}

    code, out, _ = cli("inspect", prompt)
    assert code == 0
    assert "prompt of method multitask" in out
    assert cli("inspect", prior)[1].startswith("prior of method multitask")


def test_predictions_of_labelled_rows_are_the_ones_that_evaluate_counts(
    cli: Cli, data: Path, model: Path, tmp_path: Path
):
    prompt, answers = tmp_path / "prompt", tmp_path / "answers.jsonl"
    common = ["--data", data, "--target", "edges", "--backbone", model, "--dtype", "float32"]
    assert cli("adapt", *common, "--shots", 2, "--steps", 2, "--length", 3, "--output", prompt)[0] == 0
    cli("predict", "--prompt", prompt, *common, "--input", data / "edges" / "test.jsonl", "--output", answers)
    given = [json.loads(line)["label"] for line in (data / "edges" / "test.jsonl").read_text().splitlines()]
    told = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    right = sum(a == b for a, b in zip(given, told, strict=True)) / len(given)
    assert json.loads(cli("evaluate", "--prompt", prompt, *common, "--json")[1])["scores"]["accuracy"] == right


def test_compare_reports_reuses_and_reads_its_own_plan(cli: Cli, data: Path, model: Path, tmp_path: Path):
    output = tmp_path / "out"
    words = compare_words(data, model, output)
    code, out, err = cli(*words)
    assert (code, out.strip()) == (0, str(output / "report.html")), err
    first = rows_of(output)
    assert len(first) == 8
    assert (output / "report.html").read_text().startswith("<!doctype html>")

    code, _, err = cli("compare", output / "plan.yaml")  # the saved plan, given back
    assert "8 cells: 8 finished before, 0 to run" in err, err
    assert rows_of(output) == first

    code, _, err = cli("compare", output / "plan.yaml", "--target.learning-rates", "0.1")
    assert "8 cells: 0 finished before, 8 to run" in err, err
    assert len(rows_of(output)) == 16

    page = tmp_path / "again.html"
    assert cli("report", output / "results.jsonl", "--output", page)[0] == 0
    assert "promptprior comparison" in page.read_text()

    tables, folder = tmp_path / "tables.md", tmp_path / "csv"
    code, out, _ = cli("report", f"{output},{output}", "--output", page, "--markdown", tables, "--csv", folder)
    assert (code, out.split()[:2]) == (0, [str(page), str(tables)])
    assert "| Method | Mean | IQM | Median | Mean rank |" in tables.read_text()
    assert out.split()[2:] == [str(path) for path in out.split()[2:] if Path(path).parent == folder]
    assert {"costs.csv", "scores-k2.csv"} <= {path.name for path in folder.iterdir()}

    for table in (tmp_path / "rows.csv", tmp_path / "rows.parquet"):
        code, out, _ = cli("report", output, "--table", table)
        assert (code, out.split()[1]) == (0, str(table))
    code, _, err = cli("report", output, "--table", tmp_path / "rows.xlsx")
    assert (code, ".csv or .parquet" in err) == (2, True)


@pytest.mark.parametrize("verb", ["fit", "adapt", "compare"])
def test_a_dry_run_tells_the_cost_and_writes_nothing(cli: Cli, data: Path, model: Path, tmp_path: Path, verb: str):
    output = tmp_path / "out"
    dry_run = {"fit": "--dry-run", "adapt": "--dry-run=true", "compare": "--dry-run=True"}[verb]
    common = ["--data", data, "--backbone", model, *TINY, "--output", output, dry_run]
    words = {
        "fit": ["--sources", "vowels"],
        "adapt": ["--target", "edges", "--shots", 2],
        "compare": ["--sources", "vowels", "--targets", "edges", "--shots", 2, "--seeds", 13],
    }[verb]
    code, out, err = cli(verb, *words, *common)
    assert code == 0, err
    assert re.search(r"about [\d,]+ tokens, .* at [\d,]+ tokens a second", out)
    assert not output.exists()


def test_tasks_list_show_and_check(cli: Cli, data: Path):
    code, out, _ = cli("tasks", "list", "--data", data)
    assert code == 0
    assert re.search(r"^vowels +data ", out, re.MULTILINE)
    assert re.search(r"^noun_plural +builtin ", out, re.MULTILINE)
    assert re.search(r"^boolq +hub ", out, re.MULTILINE)
    assert "answers   high, low" in cli("tasks", "show", "vowels", "--data", data)[1]
    code, out, _ = cli("tasks", "check", data)
    assert (code, out.count("ok     ")) == (0, 4)
    (data / "edges" / "test.jsonl").write_text('{"text": "a"}\n')
    code, out, err = cli("tasks", "check", data)
    assert code == 2
    assert "1 of 4 cannot be used" in err
    assert re.search(r"test\.jsonl line 1: doc_to_id: missing column 'id'", out), out


def test_tasks_export_writes_for_lm_eval_and_replaces_only_its_own(cli: Cli, data: Path, tmp_path: Path):
    words = ["tasks", "export", "edges", "--data", data, "--output", tmp_path / "out"]
    assert "write spec.yaml and train.jsonl (24)" in cli(*words, "--dry-run")[1]
    assert not (tmp_path / "out").exists()
    assert cli(*words)[:2] == (0, f"{tmp_path / 'out' / 'spec.yaml'}\n")
    assert cli(*words)[0] == 0
    assert "ok     " in cli("tasks", "check", tmp_path / "out")[1]
    (tmp_path / "out" / "test.jsonl").write_text("mine")
    code, _, err = cli(*words)
    assert code == 2
    assert "test.jsonl exists and is not what promptprior tasks wrote; choose another path, or give --force" in err
    assert "name a folder for them (--output)" in cli("tasks", "export", "edges")[2]


def test_tensorboard_hears_every_stage_of_fit_adapt_and_compare(cli: Cli, data: Path, model: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    logs, common = tmp_path / "logs", ["--data", data, "--backbone", model, *TINY]
    prior = tmp_path / "prior"
    fit = ["fit", *common, "--sources", "vowels", "--steps", 1, "--output", prior]
    assert cli(*fit, "--tensorboard", logs / "fit")[0] == 0
    adapt = ["adapt", *common, "--prior", prior, "--target", "edges", "--shots", 2, "--steps", 1]
    assert cli(*adapt, "--output", tmp_path / "prompt", "--tensorboard", logs / "adapt")[0] == 0
    lists = ["--methods", "multitask", "--sources", "vowels", "--targets", "edges", "--shots", 2, "--seeds", 13]
    compare = ["compare", *common, *lists, "--steps", 1, "--output", tmp_path / "out"]
    code, _, err = cli(*compare, "--tensorboard", logs / "compare")
    assert code == 0, err
    heard = {str(p.parent.relative_to(logs)).split("-")[0] + "/" + p.parent.name for p in logs.rglob("*tfevents*")}
    assert heard == {"fit/source/source", "adapt/target/target", "compare/fit/source", "compare/adapt/target"}
    cells = rows_of(tmp_path / "out")
    assert "0 to run" in cli(*compare)[2]  # where steps are logged decides no result
    assert rows_of(tmp_path / "out") == cells


@pytest.mark.parametrize("verb", ["fit", "adapt", "compare"])
def test_tensorboard_without_its_package_says_what_to_install(
    cli: Cli, data: Path, model: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    words = {
        "fit": ["--sources", "vowels"],
        "adapt": ["--target", "edges", "--shots", 2],
        "compare": ["--methods", "prompt_tuning", "--targets", "edges", "--shots", 2, "--seeds", 13],
    }[verb]
    common = ["--data", data, "--backbone", model, *TINY, "--output", tmp_path / "out", "--tensorboard", tmp_path]
    code, _, err = cli(verb, *words, *common)
    assert code == 2
    assert "pip install 'promptprior[tensorboard]'" in err
    assert not (tmp_path / "out").exists()


# Bad input ----------------------------------------------------------------------------------------------


def broken(data: Path, how: str) -> None:
    """Spoil the target's data in one way."""
    test, train = data / "edges" / "test.jsonl", data / "edges" / "train.jsonl"
    spec = 'task: edges\ndoc_to_text: "{{text}}"\ndoc_to_target: label\ndoc_to_choice: [low, high]\n'
    if how == "column":
        train.write_text('{"id": "1", "label": "low"}\n{"id": "2", "label": "high"}\n')
    if how == "label":
        (data / "edges" / "spec.yaml").write_text(spec)
        test.write_text('{"id": "1", "text": "a", "label": "middle"}\n')
    if how == "empty":
        test.write_text("")
    if how == "bytes":
        test.write_bytes(b'{"id": "1", "text": "caf\xe9", "label": "low"}\n')
    if how == "ids":
        (data / "edges" / "spec.yaml").write_text(spec + "doc_to_id: id\n")
        test.write_text('{"id": "train-1", "text": "new", "label": "low"}\n')


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("column", r"train\.jsonl.*text"),
        ("label", r"test\.jsonl line 1.*'middle' is outside the list"),
        ("empty", r"test\.jsonl: the file holds no rows"),
        ("bytes", r"test\.jsonl line 1: not UTF-8 \(byte 0xe9 at offset"),
        ("ids", r"1 id\(s\) stand in both train and test: train-1"),
    ],
)
def test_bad_data_stops_before_anything_is_written(
    cli: Cli, data: Path, model: Path, tmp_path: Path, how: str, says: str
):
    broken(data, how)
    output = tmp_path / "out"
    code, out, err = cli(*compare_words(data, model, output))
    assert (code, out) == (2, "")
    assert err.count("\n") <= 8
    assert re.search(says, err), err
    assert "Traceback" not in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "--targets", "edgse"], "unknown task 'edgse'; did you mean 'edges'"),
        (["compare", "--methods", "multitsk"], "unknown method 'multitsk'; did you mean 'multitask'"),
        (["compare", "--target.learnin-rates", "1"], "did you mean '--target.learning-rates'"),
        (["compare", "--batch-size", "1"], "ambiguous: say --source.batch-size or --target.batch-size"),
        (["compare", "--shots", "some"], "expected a whole number"),
        (["compare", "--shots"], "needs a value"),
        (["compare", "--seeds", "1", "--seeds", "2"], "given twice"),
        (["compare", "a.yaml", "b.yaml"], "one word too many"),
        (["compare", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["compare", "--dtype", "float31"], "expected one of auto, float32"),
        (["compare", "--quantize", "3bit"], "expected 8bit or 4bit"),
        (["compare", "--dev-limit", "0"], "dev limit 0 (--dev-limit): expected at least 1"),
        (["compare", "--source.learning-rates", "0.1,0.3"], "(--source.learning-rates): expected one"),
        (["fit", "--sources", "vowels", "--source.learning-rates", "0.1,0.3"], "of several target rates dev picks"),
        (["compare", "--backbone", "/no/such/model"], "could not be loaded"),
        (["compare", "--sources", "edges,vowels"], "a target cannot be among its own sources"),
        (["compare", "--options.multitask.nothing", "1"], "unknown key 'nothing'"),
        (["compare", "--options.multitask.nothing", "1"], "(flag --options.multitask.nothing)"),
        (["compare", "--methods", "dept", "--options.dept.rank", "x"], "(flag --options.dept.rank) is 'x'"),
        (["adapt", "--target", "edges", "--method", "dept", "--options.rank", "x"], "(flag --options.rank) is 'x'"),
        (["compare", "--target.steps", "x"], "command line: 'settings.target.steps' (flag --target.steps) is 'x'"),
        (["compare", "--dry-run=maybe"], "'dry_run' (flag --dry-run) is 'maybe'; expected true or false"),
        (["methods", "show"], "needs one more word"),
        (["methods", "show", "sopt"], "unknown method 'sopt'; did you mean 'spot'"),
        (["--print-completion", "fsh"], "unknown shell 'fsh'"),
        (["compar"], "unknown verb 'compar'; did you mean 'compare'"),
        (["fit"], "--sources"),
        (["fit", "--sources", "vowels", "--method", "prompt_tuning"], "has no prior to fit"),
        (["adapt"], "--target"),
        (["adapt", "--target", "edges", "--method", "multitask"], "--prior"),
        (["evaluate"], "'prompt' (flag --prompt) is missing"),
        (["evaluate", "--prompt", "nowhere"], "no such folder"),
        (["report", "nowhere.jsonl"], "no such file"),
        (["inspect", "nowhere"], "no such folder"),
        (["tasks", "show"], "needs one more word"),
        (["tasks", "chekc", "x"], "did you mean 'check'"),
    ],
)
def test_bad_words_are_one_message_and_nothing_else(
    cli: Cli, data: Path, model: Path, tmp_path: Path, words: Sequence[str], says: str
):
    given = list(words)
    if words[0] in ("compare", "fit", "adapt"):
        base = {"--data": str(data), "--backbone": str(model), "--dtype": "float32", "--output": str(tmp_path / "out")}
        if words[0] == "compare":
            base |= {"--sources": "vowels", "--targets": "edges", "--methods": "multitask", "--shots": "2"}
        given += [word for flag, value in base.items() if flag not in words for word in (flag, value)]
    code, out, err = cli(*given)
    assert (code, out) == (2, "")
    assert says in err, err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_error_in_a_plan_file_names_its_line(cli: Cli, tmp_path: Path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("targets: [edges]\nsettings:\n  length: 3\n  target: {steps: 5, lenght: 2}\n")
    assert f"promptprior: {plan}, line 4 in 'settings.target': unknown key 'lenght'" in cli("compare", plan)[2]
    plan.write_text("targets: [edges]\nsettings:\n  length: three\n")
    assert f"{plan}, line 3: 'settings.length' (flag --length) is 'three'; expected" in cli("compare", plan)[2]
    assert "promptprior: command line: 'shots[0]'" in cli("compare", plan, "--length", 3, "--shots", "few")[2]


@pytest.fixture
def prior(cli: Cli, data: Path, model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "prior"
    words = ["--data", data, "--sources", "vowels", "--steps", 1, "--backbone", model, *TINY]
    assert cli("fit", *words, "--output", folder)[0] == 0
    return folder


def test_a_prior_of_another_backbone_is_refused(cli: Cli, data: Path, prior: Path, tmp_path: Path):
    other = saved_model(tmp_path / "other", seed=1)
    words = ["--prior", prior, "--backbone", other, "--data", data, "--target", "edges", "--dtype", "float32"]
    code, _, err = cli("adapt", *words, "--shots", 2, "--output", tmp_path / "out")
    assert code == 2
    assert "cannot be used with" in err
    assert not (tmp_path / "out").exists()


def test_a_cut_off_prior_is_refused(cli: Cli, data: Path, prior: Path, tmp_path: Path):
    [file] = (prior / "prior").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    words = ["--prior", prior, "--data", data, "--target", "edges", "--dtype", "float32", "--shots", 2]
    code, _, err = cli("adapt", *words, "--output", tmp_path / "out")
    assert code == 2
    assert "not a whole safetensors file" in err
    assert not (tmp_path / "out").exists()


def test_debug_shows_where_an_error_came_from(cli: Cli):
    assert "Traceback" in cli("inspect", "nowhere", "--debug")[2]


def test_ctrl_c_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("promptprior.cli.entry.run", stop)
    code, _, err = cli("compare")
    assert code == 130
    assert "Run the same command again" in err
    code, _, err = cli("evaluate")
    assert (code, err) == (130, "promptprior: stopped by SIGINT.\n")  # it keeps nothing


# Presets ------------------------------------------------------------------------------------------------


def test_a_preset_is_a_plan_that_a_file_and_flags_win_over(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    plans: list[Plan] = []
    module = import_module("promptprior.compare.run")
    outcome = ComparisonOutcome(tmp_path / "report.html", 1, ())
    monkeypatch.setattr(module, "run_plan", lambda plan, **_: plans.append(plan) or outcome)
    file = tmp_path / "more.yaml"
    file.write_text("seeds: [1]\nsettings: {target: {steps: 7}}\n")
    words = ["--preset", "quick", "--output", tmp_path / "out"]
    assert cli("compare", *words)[0] == 0
    assert cli("compare", *words, "--config", file, "--source.steps", 5)[0] == 0
    quick, changed = plans
    assert (len(quick.methods), len(quick.targets), len(quick.seeds)) == (6, 4, 3)
    assert changed.seeds == (1,)
    assert (changed.settings.source.steps, changed.settings.target.steps) == (5, 7)
    assert changed.settings.target.batch_size == quick.settings.target.batch_size
    assert changed.methods == quick.methods
    code, _, err = cli("compare", "--preset", "quik")
    assert code == 2
    assert "unknown preset 'quik'; did you mean 'quick'?" in err
    assert "unknown flag '--preset'" in cli("fit", "--preset", "quick")[2]


def test_the_quick_preset_is_a_plan_of_tasks_that_exist():
    plan, _ = read_settings(find_verb("compare"), [], {"preset": "quick"})
    made = {task: builtin.make_task(task) for task in (*plan.sources, *plan.targets)}
    assert {made[t].family for t in plan.targets} <= {made[s].family for s in plan.sources}
    assert all(t.split("test") for t in made.values())


# Killed and resumed -------------------------------------------------------------------------------------


def test_a_killed_comparison_goes_on_to_the_same_rows(cli: Cli, data: Path, model: Path, tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli(*compare_words(data, model, whole))[0] == 0
    kill_after_lines(compare_words(data, model, cut), cut / "results.jsonl", lines=2)
    before = (cut / "results.jsonl").read_text()
    assert 2 <= len(rows_of(cut)) < 8
    code, _, err = cli(*compare_words(data, model, cut))
    assert code == 0
    assert f"{before.count(chr(10))} finished before" in err
    assert (cut / "results.jsonl").read_text().startswith(before)  # no finished cell was run again
    assert rows_of(cut) == rows_of(whole)


def kill_after_lines(words: Sequence[object], file: Path, lines: int) -> None:
    """Run a command in a process of its own and SIGKILL it once a file has that many lines."""
    code = "import sys; from promptprior.cli import main; sys.exit(main())"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, **quiet)
    limit = time.monotonic() + 120
    while not (file.exists() and file.read_text().count("\n") >= lines) and time.monotonic() < limit:
        assert process.poll() is None, "the comparison ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


# Verbs of other packages, and completion ----------------------------------------------------------------


@dataclass(frozen=True)
class GreetPlan:
    """say hello"""

    whom: str = setting("world", "who is greeted")

    def run(self, dry_run: bool) -> None:
        print(f"hello {self.whom}, {dry_run}")


GREET = Verb("greet", GreetPlan, GreetPlan.run, "promptprior greet you", positional=("whom",))


def test_another_package_adds_a_verb(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    point = EntryPoint("greet", f"{__name__}:GREET", PLUGINS)
    monkeypatch.setattr("promptprior.plugins._entry_points", lambda group, _: (point,) if group == PLUGINS else ())
    assert cli("greet", "you", "--dry-run") == (0, "hello you, True\n", "")
    assert "\n  greet     " in cli("--help")[1]
    assert "--whom TEXT" in cli("greet", "--help")[1]
    assert "unknown flag '--whmo'; did you mean '--whom'?" in cli("greet", "--whmo", "x")[2]
    assert "unknown verb 'great'; did you mean 'greet'" in cli("great")[2]


def test_bash_completes_verbs_and_flags(cli: Cli, tmp_path: Path):
    script = tmp_path / "complete.sh"
    script.write_text(cli("--print-completion", "bash")[1])
    assert complete(script, "promptprior", "comp") == {"compare"}
    assert complete(script, "promptprior", "compare", "--target.learning") == {"--target.learning-rates"}
    assert complete(script, "promptprior", "compare", "--shared", "re") == {"refuse"}
    assert "--prompt" in complete(script, "promptprior", "evaluate", "--")


def complete(script: Path, *words: str) -> set[str]:
    """What bash offers after some words."""
    ask = (
        f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_promptprior {words[0]} "
    )
    ask += f"'{words[-1]}' {words[-2]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_methods_are_listed_and_shown_with_their_options(cli: Cli):
    code, out, _ = cli("methods", "list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert METHODS.keys() <= lines.keys()
    assert re.search(r"^spot +yes +Vu et al. 2022 ", lines["spot"])
    code, out, _ = cli("methods", "show", "bmtpt")
    assert code == 0
    assert "learns a prior from source tasks" in out
    assert "2402.08594" in out
    assert "  particles = 5\n      M, prompts that stand for the posterior (a whole number, at least 1)" in out
    assert "needs_sources" not in out
    assert "kernel none" in lines["bmtpt_chains"]
    assert 'head = "verbalizer"' in cli("methods", "show", "zero_shot")[1].replace("'", '"')


# Help and documents -------------------------------------------------------------------------------------


def test_help_needs_no_torch():
    """Neither the overview nor any verb's: that is the difference between an instant and seconds."""
    asked = [[], *([verb, "--help"] for verb in VERBS)]
    heavy = {"torch", "transformers", "numpy"}
    code = f"import sys; from promptprior.cli import main; [main(words) for words in {asked}]; "
    code += f"sys.exit(bool({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {verb}" in done.stdout for verb in VERBS)
    assert "--target.learning-rates" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_of_a_verb_has_a_help_text_and_a_default(cli: Cli, verb: str):
    code, out, _ = cli(verb, "--help")
    assert code == 0
    for item in list_settings(find_verb(verb).settings):
        assert f"  {item.flag} " in out or f"  {item.flag}\n" in out
        assert item.help, item.flag
    assert cli("help", verb)[1] == out


def documents() -> list[Path]:
    return [path for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))) if path.exists()]


def commands(text: str) -> list[list[str]]:
    """Every `promptprior …` command in the code blocks and code spans of a document."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if language in ("", "bash", "console", "sh")]
    blocks += re.findall(r"`(promptprior [^`\n]+)`", text)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ").split("#")[0].split() for line in lines if re.match(r"(\$ )?promptprior \w", line)]


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_commands_in_documents_use_verbs_and_flags_that_exist(path: Path):
    for _, verb, *words in commands(path.read_text(encoding="utf-8")):
        if verb == "VERB":
            continue
        assert verb in VERBS, path.name
        read_words(find_verb(verb), [w for w in words if w not in ("…", "...", "--help")])


FOLDERS = {  # columns and number of labels of task folders that the README's line names
    "sst2": (("sentence",), 2),
    "trec": (("text",), 6),
    "ag_news": (("text",), 4),
    "mrpc": (("sentence1", "sentence2"), 2),
    "subj": (("text",), 2),
}


def write_folder(folder: Path, columns: Sequence[str], labels: int) -> None:
    """A task folder as a user has it: splits, and a task.json with the labels' names."""
    folder.mkdir(parents=True)
    named = [f"{folder.name} {label}" for label in range(labels)]
    told = {"name": folder.name, "label_names": named, "metric": "accuracy"}
    told |= {"columns": [*columns, "label"], "input_columns": [*columns]}
    (folder / "task.json").write_text(json.dumps(told))
    for split, count in {"train": 40 * labels, "validation": 8, "test": 8}.items():
        rows = [{**{c: f"{folder.name} {split} {c} {i}" for c in columns}, "label": i % labels} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.mark.slow
def test_the_five_methods_of_the_readme_compare_as_written(cli: Cli, model: Path, tmp_path: Path):
    for name, (columns, labels) in FOLDERS.items():
        write_folder(tmp_path / "data" / name, columns, labels)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [words] = [c[1:] for c in commands(text) if "prompt_tuning,multitask,bmtpt,reptile,tpt" in c]
    output = tmp_path / "out"
    places = {"DIR": tmp_path / "data", "OUT": output}
    few = ("--source.steps", 10, "--target.steps", 10)  # all of them take most of a minute
    code, out, err = cli(*(places.get(word, word) for word in words), "--backbone", model, *few)
    assert (code, out.strip()) == (0, str(output / "report.html")), err
    rows = rows_of(output).values()
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == 5 * 2 * 2


def test_an_option_of_a_method_needs_no_declaration():
    compare = find_verb("compare")
    _, flags = read_words(compare, ["--options.spot.top", "2", "--length=5", "--dry-run"])
    assert flags == {"options.spot.top": "2", "settings.length": "5", "dry_run": "true"}
    assert read_words(compare, ["--dry-run", "plan.yaml"]) == (["plan.yaml"], {"dry_run": "true"})
    with pytest.raises(SpecError, match="ambiguous"):
        read_words(compare, ["--warmup", "2"])


def test_similar_ranks_sources_and_keeps_what_reports_read(cli: Cli, data: Path, model: Path, tmp_path: Path):
    words = ["similar", "--target", "edges,other", "--sources", "vowels,sounds", "--data", data, "--backbone", model]
    words += ["--dtype", "float32", "--length", 3, "--shots", 2, "--steps", 2, "--target.batch-size", 2]
    code, out, err = cli(*words)
    assert code == 0, err
    blocks = out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["edges", "other"]
    assert blocks[0].splitlines()[1].split() == ["rank", "source", "gradient", "prompt", "token", "label", "format"]
    rows = [line.split() for line in blocks[0].splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[0][2]) >= float(rows[1][2])

    file = tmp_path / "similarity.json"
    code, out, _ = cli(*words, "--json", "--by", "prompt", "--output", file)
    told = json.loads(out)
    first = [pair for pair in told["pairs"] if pair["rank"] == 1]
    assert (code, told["by"], told["shots"], len(first)) == (0, "prompt", 2, 2)
    task_similarity = read_similarity(file)
    assert task_similarity is not None
    assert {(p.source, p.target, p.gradient) for p in task_similarity.pairs} == {
        (p["source"], p["target"], p["gradient"]) for p in told["pairs"]
    }
    assert "2 steps on 2 shots per class of each of 4 tasks" in cli(*words, "--dry-run")[1]


def test_a_bank_tells_the_report_what_it_retrieves(cli: Cli, data: Path, model: Path, tmp_path: Path):
    output = tmp_path / "out"
    lists = ["--methods", "prompt_tuning,tpt", "--sources", "vowels,sounds", "--targets", "edges"]
    sizes = ["--shots", 2, "--seeds", 13, "--steps", 2, "--test-limit", 4]
    words = ["compare", "--data", data, *lists, *sizes, "--backbone", model, *TINY, "--output", output]
    code, _, err = cli(*words, "--options.tpt.bank-size", 8, "--options.tpt.retrieve", 2)
    assert code == 0, err
    (row,) = [r for r in rows_of(output).values() if r["method"] == "tpt"]
    said = row["diagnostics"]["retrieval"]  # type: ignore[index]
    assert said["tasks"] == ["vowels", "sounds", "edges"]
    assert [len(shares) for shares in said["map"]] == [8, 8, 8]
    page = (output / "report.html").read_text()
    assert "Is retrieval real?" in page
    assert "Most used tokens of tpt" in page


def test_a_partition_gives_sources_and_targets(cli: Cli, data: Path, model: Path, tmp_path: Path):
    named = {"own": {"train": ["vowels", "gone"], "test": ["edges"]}, "bad": {"train": ["vowels"], "test": ["vowels"]}}
    (data / "partitions.json").write_text(json.dumps(named))
    common = ["--data", data, "--backbone", model, *TINY, "--steps", 2]
    output = tmp_path / "out"
    grid = ["compare", *common, "--methods", "multitask", "--shots", 2, "--seeds", 13, "--test-limit", 4]
    assert cli(*grid, "--partition", "own", "--output", output)[0] == 0
    (row,) = rows_of(output).values()
    assert (row["sources"], row["target"]) == (["vowels"], "edges")
    code, _, err = cli(
        "compare", output / "plan.yaml", "--similarity"
    )  # the saved plan names both the partition and its sides
    assert "1 finished before, 0 to run" in err
    assert "similarity of 1 sources and 1 targets" in err
    assert (output / "similarity.json").is_file()
    assert "Similarity of sources and targets" in (output / "report.html").read_text()
    assert "similarity of" not in cli("compare", output / "plan.yaml", "--similarity")[2]  # it is kept
    code, _, err = cli(*grid, "--partition", "bad", "--output", tmp_path / "bad")
    assert (code, (tmp_path / "bad").exists()) == (2, False)
    assert "vowels stand on both sides" in err

    assert cli("fit", *common, "--partition", "own", "--output", tmp_path / "prior")[0] == 0
    assert "vowels" in cli("inspect", tmp_path / "prior")[1]
