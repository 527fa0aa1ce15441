"""The papers' comparisons by name: whole plans of tasks that exist, and three of them from end to end at tiny size."""

import json
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers as tf

from promptprior.cli import main
from promptprior.cli.entry import read_settings
from promptprior.cli.verb import find_verb
from promptprior.config.presets import read_presets
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError
from promptprior.report.page import make_report
from promptprior.report.published.published_rows import ROWS
from promptprior.report.results import read_rows
from promptprior.report.section import DASH
from promptprior.tasks import Split, Task, load_task
from promptprior.tasks.loading.load import missing_tasks
from tests.backbone.tiny import config, tokenizer
from tests.report.result_rows import result_row

PRESETS = find_verb("compare").presets
assert PRESETS is not None
PAPERS = {name: plan for name, plan in read_presets(PRESETS).items() if "/" in name}
PUBLISHED = load_yaml(ROWS)["tables"]
DATA = Path(__file__).parents[3] / "shared" / "data"
META = {
    "random_to_random": (113, 20), "cls_to_cls": (45, 10), "both_to_cls": (45, 10), "noncls_to_cls": (45, 10),
    "cls_to_noncls": (45, 15), "both_to_noncls": (45, 15), "noncls_to_noncls": (45, 15), "qa_to_qa": (22, 16),
    "nonqa_to_qa": (33, 16), "nonnli_to_nli": (55, 9), "nonparaphrase_to_paraphrase": (60, 4),
}  # fmt: skip
"""Sources and targets of Qin et al.: 114 and 56 sources less one each, which are targets too."""


def test_every_setting_of_the_papers_has_a_name() -> None:
    sizes = {name: (len(plan["sources"]), len(plan["targets"])) for name, plan in PAPERS.items()}
    assert {n.removeprefix("mpt_meta/"): s for n, s in sizes.items() if n.startswith("mpt_meta/")} == META
    shared = {"glue_superglue", "mrqa_others"}
    for paper, more in {"bmtpt": {"fewshot", "multi_target"}, "tpt": {"bank_size"}, "attempt": {"fewshot"}}.items():
        assert {f"{paper}/{name}" for name in shared | more} <= PAPERS.keys()


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_is_a_whole_plan(name: str) -> None:
    plan, _ = read_settings(find_verb("compare"), [], {"preset": name})
    assert (plan.published, plan.output) == (name, Path("runs") / name)
    assert (plan.settings.length, plan.settings.source.rate_unit, plan.settings.target.rate_unit) == (
        100, "absolute", "absolute",
    )  # fmt: skip
    assert set(plan.metrics) <= set(plan.targets)
    assert PAPERS[name]["about"]


def test_published_rows_belong_to_presets_and_fit_their_targets() -> None:
    for name, table in PUBLISHED.items():
        assert name in PAPERS
        targets = table.get("targets", ())
        assert not targets or set(targets) & set(PAPERS[name]["targets"])
        for row in table["rows"]:
            assert row["evidence"] in ("C", "X", "R")
            assert len(row.get("scores", targets)) == len(targets) or not targets
            assert all(0 <= score <= 100 for score in row.get("scores", ()))


def test_published_means_agree_with_their_scores() -> None:
    """Where a table has single scores and a mean of all of them, they say the same, to rounding."""
    checked = 0
    for row in PUBLISHED["mpt_meta/cls_to_cls"]["rows"]:
        assert sum(row["scores"]) / 10 == pytest.approx(row["mean"], abs=0.1)  # both are rounded to 0.1
        checked += 1
    assert checked == 6


def test_published_rows_stand_beside_our_own() -> None:
    rows = [
        result_row(cell=f"{m}-{t}-{seed}", method=m, target=t, seed=seed, score=score + seed / 100, sources=["sst2"])
        for m, base in {"prompt_tuning": 0.4, "mpt": 0.6, "bmtpt": 0.7}.items()
        for t, score in {"rte": base, "cb": base - 0.2}.items()
        for seed in (1, 3)
    ]
    [table] = [t for t in make_report(rows, published="bmtpt/glue_superglue").tables if t.name == "published"]
    lines = [[cell.text for cell in row] for row in table.rows]
    assert [c.head for c in table.columns] == ["Method", "Whose", "Evidence", "k", "rte", "cb", "Mean", "ARG"]
    mpt = next(i for i, line in enumerate(lines) if line[:2] == ["MPT", "published"])
    assert lines[mpt] == ["MPT", "published", "R", DASH, "0.794", "0.798", "0.796", DASH]
    gain = ((0.62 - 0.42) / 0.42 + (0.42 - 0.22) / 0.22) / 2
    assert lines[mpt + 1] == ["mpt", "here", "", "16", "0.620", "0.420", "0.520", f"+{100 * gain:.1f}%"]
    assert lines[-1][:2] == ["bmtpt", "here"]  # no published row was recovered
    assert not [t for t in make_report(rows).tables if t.name == "published"]
    [none] = [t for t in make_report(rows, published="tpt/bank_size").tables if t.name == "published"]
    assert "No row of this preset could be recovered" in none.note


# From end to end -----------------------------------------------------------------------------------------

COLUMNS = {
    "sst2": ("sentence",), "rte": ("sentence1", "sentence2"), "cola": ("sentence",), "mrpc": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"), "cb": ("premise", "hypothesis"), "scitail": ("premise", "hypothesis"),
    "paws": ("sentence1", "sentence2"), "qqp": ("question1", "question2"),
}  # fmt: skip
TINY = {
    "length": 4,
    "source.steps": 2,
    "target.steps": 2,
    "source.batch-size": 4,
    "target.batch-size": 4,
} | dict.fromkeys(("source.warmup", "target.warmup"), 0)
TINY |= {"target.eval-every": 1, "target.learning-rates": 0.3, "seeds": 13, "test-limit": 4, "dtype": "float32"}
RUNS = {
    "bmtpt/fewshot": {"shots": 4, "options.bmtpt.particles": 2, "options.bmtpt.prior-width": 30},
    "tpt/rte": {f"options.tpt_as_released.{n}": 4 for n in ("retrieve", "task-tokens")}
    | {"options.tpt_as_released.bank-size": 12, "shots": 6},
    "mpt_meta/nonparaphrase_to_paraphrase": {"shots": 2}
    | {f"options.{m}.shots": 2 for m in ("maml", "fomaml", "reptile")},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    tf.AutoModelForSeq2SeqLM.from_config(config("t5")).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks with the columns that the catalogue's specs read; others of the presets are missing."""
    folder = tmp_path_factory.mktemp("data")
    for name, texts in COLUMNS.items():
        (folder / name).mkdir()
        labels = 3 if name in ("mnli", "cb") else 2
        for split, count in {"train": 24, "validation": 12}.items():
            rows = [
                {column: f"{name} {split} {column[-1]}{i}" for column in texts} | {"label": i % labels, "idx": i}
                for i in range(count)
            ]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_missing_tasks_are_all_named_at_once(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["compare", "--preset", "bmtpt/fewshot", "--data", str(data), "--backbone", str(model)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "3 of 6 sources (qnli, squad, record) and 1 of 3 targets (boolq) are not there" in message
    assert "--allow-missing" in message
    assert not (tmp_path / "out").exists()
    assert main(["compare", "--preset", "tpt/stsb", "--data", str(data), "--allow-missing"]) == 2
    assert "none of the targets is there (stsb; --data)" in capsys.readouterr().err


@pytest.mark.parametrize("name", RUNS)
def test_a_preset_runs_from_end_to_end_at_tiny_size(
    name: str, data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = {"preset": name, "data": data, "backbone": model, "output": out, **TINY, **RUNS[name]}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    assert main(["compare", *words, "--allow-missing", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert f"not in {data}" in dry
    if "source_seed" in PAPERS[name]:
        words += ["--source-seed", "13"]
    assert main(["compare", *words, "--allow-missing"]) == 0
    rows = read_rows(out / "results.jsonl")
    assert {row.method for row in rows} == set(PAPERS[name]["methods"])
    assert {row.target for row in rows} == set(PAPERS[name]["targets"]) & set(COLUMNS)
    assert all(row.is_ok for row in rows)
    page = (out / "report.html").read_text()
    assert f"Published rows of {name}" in page
    if name == "bmtpt/fewshot":  # k in total, dev and test the halves of the validation set
        assert {(len(row.shots.train_ids), len(row.shots.dev_ids), row.n_test) for row in rows} == {(4, 6, 4)}
    if name.startswith("mpt_meta"):
        assert {row.target: row.metric for row in rows}["paws"] == "macro_f1"
    counted = re.search(r"(\d+) cells", dry)
    assert counted is not None
    assert int(counted[1]) == len(rows)


@pytest.fixture(scope="module")
def sampled() -> Callable[..., Task]:
    """`load_task` with a few rows of each split, each task loaded once: there are a hundred."""
    few: dict[Split, int] = {"train": 40, "validation": 20, "test": 20}
    return cache(lambda name, data, limits=None: load_task(name, data, few))


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")
@pytest.mark.parametrize("name", PAPERS)
def test_every_preset_dry_runs_on_the_tasks_at_hand(
    name: str,
    model: Path,
    sampled: Callable[..., Task],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = import_module("promptprior.compare.run")
    monkeypatch.setattr(run, "load_task", sampled)
    monkeypatch.setattr(run, "tokens_per_second", lambda *_: 1000.0)  # takes seconds
    words = ["compare", "--preset", name, "--data", str(DATA), "--backbone", str(model), "--length", "20", "--dry-run"]
    code = main([*words, "--allow-missing"])
    captured = capsys.readouterr()
    if not {path.name for path in DATA.iterdir()} & set(PAPERS[name]["targets"]):
        assert "none of the targets is there" in captured.err
        return
    assert code == 0, captured.err
    missing = missing_tasks([*PAPERS[name]["sources"], *PAPERS[name]["targets"]], DATA)
    assert all(task in captured.out for task in missing)
    if len(set(missing)) > 1:
        assert main(words) == 2
        refused = capsys.readouterr().err
        assert all(task in refused for task in (*missing, "--allow-missing"))


def test_presets_are_listed_and_unknown_ones_have_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--preset", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed for name in PAPERS)
    with pytest.raises(SpecError, match="did you mean 'mpt_meta/cls_to_cls' or "):
        read_settings(find_verb("compare"), [], {"preset": "mpt_meta/cls_to_cl"})
