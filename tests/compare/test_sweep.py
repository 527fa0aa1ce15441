"""A plan with swept settings: one run for each combination, in one folder, whose cells are those of plain plans."""

# ruff: noqa: F811  fixtures of another file are parameters here

import re
from dataclasses import replace
from typing import Any

import pytest

from promptprior.backbone import Backbone
from promptprior.cli.arguments import read_words
from promptprior.cli.entry import read_settings
from promptprior.cli.verb import find_verb
from promptprior.compare import execute, run
from promptprior.compare.plan import Plan
from promptprior.config.mapping import from_mapping
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError
from promptprior.report.curves.sweep_curves import swept_value
from promptprior.report.results import read_rows
from tests.compare.test_run import SHORT, backbone, lines, plan, say_nothing  # noqa: F401  fixtures


def plan_of(*words: str) -> Plan:
    """The plan of a command line."""
    verb = find_verb("compare")
    return read_settings(verb, *read_words(verb, words))[0]


def without_seconds(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["cell"]: row | {"cost": {k: v for k, v in row["cost"].items() if "seconds" not in k}} for row in rows}


def plain(plan: Plan, steps: int) -> Plan:
    longer = replace(SHORT, target=replace(SHORT.target, steps=steps))
    return replace(plan, settings=longer, output=plan.output.with_name(f"plain{steps}"))


def test_swept_cells_are_those_of_plain_plans_and_priors_are_fitted_once(
    plan: Plan,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swept, heard, fits = replace(plan, sweep={"target.steps": (2, 3)}), list[str](), list[str]()
    fit = execute.fit
    monkeypatch.setattr(execute, "fit", lambda method, *rest: fits.append(method.name) or fit(method, *rest))
    page = run.compare(swept, backbone, heard.append)
    assert sorted(fits) == ["multitask", "multitask", "spot", "spot"]  # a seed each: the source stage is the same
    assert "14 cells: 0 finished before, 14 to run" in heard
    assert [line for line in heard if line.startswith("target.steps =")] == ["target.steps = 2", "target.steps = 3"]
    assert 'Swept: target.steps. "Sweep" has all values' in page.read_text().replace("&#34;", '"')
    assert not (plan.output / "work").exists()

    rows = lines(swept)
    for steps in (2, 3):
        run.compare(plain(plan, steps), backbone, say_nothing)
        own = without_seconds(lines(plain(plan, steps)))
        mine = {key: row for key, row in without_seconds(rows).items() if row["settings"]["target"]["steps"] == steps}
        assert mine == own

    monkeypatch.setattr(execute, "adapt", lambda *_, **__: pytest.fail("a finished cell was run again"))
    saved = from_mapping(Plan, load_yaml(plan.output / "plan.yaml"), "plan.yaml")
    assert saved.sweep == {"target.steps": (2, 3)}
    for again in (swept, saved, replace(plain(plan, 3), output=plan.output)):
        run.compare(again, backbone, say_nothing)
    assert lines(swept) == rows


def test_options_of_one_method_run_the_others_once_and_rows_have_the_values(
    plan: Plan,
    backbone: Backbone,
) -> None:
    key, options = "options.prompt_tuning.head", ("verbalizer", "linear")  # rows left out the default once
    swept = replace(plan, methods=("zero_shot", "prompt_tuning"), sources=(), seeds=(13,), sweep={key: options})
    run.compare(swept, backbone, say_nothing)
    rows = read_rows(plan.output / run.RESULTS)
    assert [(row.method, swept_value(row, key)) for row in rows] == [
        ("zero_shot", None),
        ("prompt_tuning", "verbalizer"),
        ("prompt_tuning", "linear"),
    ]
    assert all(row.is_ok for row in rows)


def test_a_dry_run_counts_cells_and_shared_priors_once(plan: Plan, backbone: Backbone) -> None:
    swept = replace(plan, sweep={"target.steps": (2, 3)})
    page, one = run.preview(swept, backbone), run.preview(plan, backbone)
    assert page.startswith("14 cells: 0 finished before, 14 to run")
    assert "target.steps = 3: 7 cells to run" in page
    of_fits = r": fit ([\d,]+) tokens"
    assert len(re.findall(of_fits, page)) == len(re.findall(of_fits, one)) == 4

    def tokens(text: str) -> int:
        return int(re.findall(r"about ([\d,]+) tokens", text)[0].replace(",", ""))

    fits = sum(int(n.replace(",", "")) for n in re.findall(of_fits, one))
    other = run.preview(plain(plan, 3), backbone)
    assert tokens(page) == pytest.approx(tokens(one) + tokens(other) - fits, abs=5)


def test_a_failed_combination_is_counted_and_the_next_one_runs(
    plan: Plan,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def adapt(method: Any, episodes: Any, *rest: Any) -> Any:
        if rest[2].target.steps == 2:
            raise ValueError("not today")
        return real(method, episodes, *rest)

    real = execute.adapt
    monkeypatch.setattr(execute, "adapt", adapt)
    swept = replace(plan, methods=("prompt_tuning",), sources=(), sweep={"target.steps": (2, 3)}, retries=0)
    outcome = run.run_plan(swept, backbone, say_nothing)
    assert (outcome.cells, len(outcome.errors)) == (4, 2)
    assert "2 of 4 cells failed" in outcome.page.read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["lenght=10,20"], r"unknown setting 'lenght'; did you mean 'length'"),
        (["target.learning_rate=0.1"], r"did you mean 'target.learning-rates'"),
        (["clip=1"], r"'clip' .*is ambiguous: say source.clip or target.clip"),
        (["length=ten"], r"length = ten: .*is 'ten'; expected a whole number"),
        (["length=0,5"], r"length 0 \(--length\): expected at least 1"),
        (["length="], r"'length' .*: expected one value or more"),
        (["length"], r"'sweep' \(flag --sweep\) is 'length'; expected 'key: value' settings"),
        (["length=5", "length=6"], r"flag --sweep length is given twice"),
        (["length=5,5"], r"length = 5 and length = 5 come to the same"),
        (["settings.length=5", "length=6"], r"'length' .*is given twice"),
        (["options.bmtpt.particle=5"], r"did you mean 'particles'"),
        (["options.tpt.retrieve=5"], r"options for tpt .*not among --methods"),
        (["options.bmtpt=5"], r"expected options.METHOD.OPTION"),
        (["methods=spot,tpt"], r"unknown setting 'methods'"),
        (["length=" + ",".join(map(str, range(1, 101))), "target.steps=1,2,3,4,5,6,7,8,9,10,11"], r"1,100 combinat"),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_a_wrong_sweep_is_one_message(words: list[str], text: str) -> None:
    flags = [word for each in words for word in ("--sweep", each)]
    common = ["--methods", "prompt_tuning,bmtpt", "--sources", "a", "--targets", "b"]
    with pytest.raises(SpecError, match=text):
        plan_of(*common, *flags)


def test_flags_and_files_mean_the_same() -> None:
    common = ["--methods", "bmtpt", "--sources", "a", "--targets", "b"]
    flags = ["--sweep", "length=10,20", "--sweep", "options.bmtpt.prior-width=[[30],[30,300]]"]
    by_flags = plan_of(*common, *flags)
    values = {"length": [10, 20], "options.bmtpt.prior-width": [[30], [30, 300]]}
    mapping = {"methods": ["bmtpt"], "sources": ["a"], "targets": ["b"], "sweep": values}
    assert from_mapping(Plan, mapping, "a file") == by_flags
    plans = by_flags.combinations()
    assert list(plans) == [
        f"length = {length}, options.bmtpt.prior_width = {width}"
        for length in (10, 20)
        for width in ("[30]", "[30, 300]")
    ]
    [*_, last] = plans.values()
    alone = ["--length", "20", "--options.bmtpt.prior-width", "30,300"]
    assert (last.settings, last.make_methods()) == (
        (typed := plan_of(*common, *alone)).settings,
        typed.make_methods(),
    )
