"""Results of an older commit are still valid: the same keys, the same folders, and nothing is run again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptprior.backbone import load
from promptprior.compare import execute, run
from promptprior.compare.plan import Plan, cells
from promptprior.compare.schedule import WorkerContext, prior_folder
from promptprior.config.mapping import from_mapping, to_mapping
from promptprior.config.training import Training
from promptprior.config.yaml_file import load_yaml
from promptprior.methods import METHODS, make_method
from promptprior.report.results import read_rows

BEFORE = Path(__file__).parents[1] / "fixtures" / "before"
KEYS = json.loads((BEFORE / "keys.json").read_text())


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the older commit left behind, as the working folder: its plans have relative paths."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def plan_from_file(path: Path) -> Plan:
    return from_mapping(Plan, load_yaml(path), str(path))


def test_a_finished_comparison_is_not_run_again(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(execute, "adapt", refuse)
    monkeypatch.setattr(execute, "fit", refuse)
    heard, results = list[str](), before / "results" / "results.jsonl"
    lines = results.read_text()
    saved = plan_from_file(before / "results" / "plan.yaml")
    methods = tuple(m for m in saved.methods if not has_changed(saved, m))
    assert set(saved.methods) - set(methods) == {"bmtpt"}
    saved = replace(saved, methods=methods, options={m: o for m, o in saved.options.items() if m in methods})
    page = run.compare(saved, say=heard.append)
    count = sum(row.method in saved.methods for row in read_rows(results))
    assert f"{count} cells: {count} finished before, 0 to run" in heard
    assert page.exists()
    assert results.read_text() == lines
    again = plan_from_file(before / "results" / "plan.yaml")  # written anew, with today's names
    assert (again.cells_per_run, again.resolved()) == (saved.cells_per_run, saved.resolved())


def has_changed(plan: Plan, method: str, *, prior: bool = False) -> bool:
    """Whether results are others than those of the older commit: recipes were revised, and weight decay counts less."""
    recipe = make_method(method, plan.options.get(method))
    revised = any(name == "revision" for name in to_mapping(recipe))
    return revised or bool(plan.settings.source.weight_decay or (plan.settings.target.weight_decay and not prior))


def test_results_that_are_others_now_have_other_keys_and_no_more() -> None:
    revised = {name for name in METHODS if "revision" in to_mapping(make_method(name))}
    assert revised == {"bmtpt", "bmtpt_chains", "bmtpt_single", "bmtpt_no_prior", "bmtpt_predictive", "bmtpt_linear"}
    assert "revision" in to_mapping(make_method("tpt", {"rule": "svgd"}))
    plain, decayed = Training(), Training(weight_decay=0.1)
    assert "decay_revision" not in {**to_mapping(plain, for_hash=True), **to_mapping(decayed)}
    assert to_mapping(decayed, for_hash=True)["decay_revision"] == 1
    assert from_mapping(Training, to_mapping(decayed), "a plan") == decayed


def with_default_of_then(plan: Plan) -> Plan:
    """Dev was asked every 20 steps of targets by default; saved plans say so, and these were made without."""
    target = plan.settings.target
    return replace(plan, settings=replace(plan.settings, target=replace(target, eval_every=target.eval_every or 20)))


def test_asking_dev_after_a_tenth_of_the_steps_has_other_keys_and_the_same_priors(before: Path) -> None:
    plan = from_mapping(Plan, KEYS["defaults"]["plan"], "a plan")
    then, backbone = with_default_of_then(plan), load("backbone", dtype="float32", device="cpu")
    tasks = run.load_tasks(plan)
    now, old = ({cell.key for cell in cells(p, tasks, backbone)} for p in (plan, then))
    assert not now & old
    contexts = [WorkerContext(p, tasks, backbone) for p in (plan, then)]
    for method in (m for m in plan.make_methods() if m.needs_sources):
        one, other = (prior_folder(context, method, 13).name for context in contexts)
        assert one == other


@pytest.mark.parametrize("name", KEYS)
def test_every_cell_and_prior_has_its_old_key(before: Path, name: str) -> None:
    stored: dict[str, Any] = KEYS[name]
    plan = with_default_of_then(from_mapping(Plan, stored["plan"], name))
    tasks = run.load_tasks(replace(plan, train_limit=None))  # the keys were stored without a limit
    backbone = load("backbone", dtype="float32", device="cpu")
    keys = [[c.method.name, c.target.name, c.k, c.seed, c.key] for c in cells(plan, tasks, backbone)]
    assert [key[:4] for key in keys] == [key[:4] for key in stored["cells"]]
    for ours, theirs in zip(keys, stored["cells"], strict=True):
        assert (ours == theirs) != has_changed(plan, ours[0]), ours
    context = WorkerContext(plan, tasks, backbone)
    priors = {
        method.name: prior_folder(context, method, plan.seeds[0]).name
        for method in plan.make_methods()
        if method.needs_sources
    }
    assert priors.keys() == stored["priors"].keys()
    for method, folder in priors.items():
        assert (folder == stored["priors"][method]) != has_changed(plan, method, prior=True), method
