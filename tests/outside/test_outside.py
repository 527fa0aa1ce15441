"""A package from outside adds seven things without a change in promptprior: each is driven through the public door."""

import ast
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import promptprior as pp
from promptprior import plugins
from promptprior.adaptation.runs import initial_adaptation
from promptprior.backbone import training_tokens
from promptprior.cli import main
from promptprior.config.mapping import from_mapping
from promptprior.errors import SpecError
from promptprior.fit import make_run_context
from promptprior.methods import METHODS, AdaptationInit
from promptprior.objectives.objective import PromptObjective
from promptprior.objectives.weight_objective import objective_of
from promptprior.report.results import read_rows
from promptprior.rules.averaging import Averaging
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import Rate, Sgd
from promptprior.rules.rule import Rule, State, answer
from promptprior.tasks import load_task
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from tests.backbone.tiny import saved_model
from tests.methods import test_contract as contract
from tests.rules.meta_toys import Toy, numbers, wave

PACKAGE = Path(__file__).parent / "package"
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
NAMES = tuple(PROJECT["entry-points"]["promptprior.methods"])
DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The package as pip leaves it: on the path, beside a dist-info folder with the entry points of its pyproject.

    promptprior was imported before the package was there, so its methods are also entered by hand.
    """
    folder = tmp_path_factory.mktemp("site")
    info = folder / "outside_pkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: 1.0\n")
    groups = PROJECT["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.syspath_prepend(PACKAGE)
        for name, recipe in plugins.load_plugins("promptprior.methods").items():
            patch.setitem(METHODS, name, recipe)
        yield [str(PACKAGE), str(folder)]


# --- methods: the contract suite -----------------------------------------------------------------------


@pytest.mark.parametrize("check", contract.EVERY_METHOD)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_methods(name: str, check: Callable[[str], None]) -> None:
    check(name)


def test_the_contract_of_priors(tmp_path: Path) -> None:
    for check in contract.EVERY_PRIOR:
        check("sam_multitask")
    contract.test_a_killed_fit_comes_to_the_same_bytes("sam_multitask", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_other_families(name: str, tmp_path: Path) -> None:
    contract.test_priors_and_prompts_come_back_from_their_folders(name, tmp_path / "llama")
    contract.test_a_killed_adaptation_comes_to_the_same(name, tmp_path / "killed")
    contract.test_other_families_of_models_are_served(name, "mistral", tmp_path / "mistral")
    refusal = "kv_prefix needs a decoder, and tiny-t5 is an encoder-decoder"
    with pytest.raises(SpecError, match=refusal) if name == "outside_prefix" else nullcontext():
        contract.test_other_families_of_models_are_served(name, "t5", tmp_path / "t5")


# --- what each of them is, against something else -------------------------------------------------------


def initialise(name: str, family: str = "llama", **options: object) -> tuple[pp.Backbone, AdaptationInit]:
    """Where a method starts the suite's episode of ranked choices, on a tiny float64 model of a family."""
    backbone, method = contract.backbone(torch.float64, family), pp.make_method(name, options)
    context = make_run_context(backbone, contract.settings(), pp.RunControl())
    return backbone, initial_adaptation(method, context, [], contract.episodes(name)[:1])


def test_context_tuning_hides_the_demonstration_of_the_text_itself() -> None:
    backbone, init = initialise("ct_prompt", token_dropout=0.0)
    form, shots = init.parameterisation, contract.episodes("ct_prompt")[0].shots
    tokens = training_tokens(backbone, contract.CHOICE, shots.train)
    batch = EpisodeDraws([Pool(tokens)], 8, [13]).batch(3)
    hidden = form.hidden(init.params, batch)
    table = backbone.frozen.vocabulary_embeddings
    shown = torch.cdist(init.params["prompt"][0], table).argmin(1).tolist()  # a token is its own nearest neighbour
    for mask, example in zip(hidden.tolist(), batch.example_index.tolist(), strict=True):
        visible = "".join("#" if hides else backbone.frozen.decode([i]) for hides, i in zip(mask, shown, strict=True))
        answers = [f"{e.text} {e.target}" in visible for e in shots.train]
        assert answers == [i != example for i in range(len(shots.train))]
    # What is hidden changes no loss in training; where the method is evaluated nothing is.
    noise = init.params["prompt"] + hidden[:1, :, None] * 9.0
    mine = batch.take(torch.tensor([0]))
    losses = [PromptObjective(backbone, form).losses({"prompt": p}, mine) for p in (init.params["prompt"], noise)]
    assert torch.equal(*losses)
    assert form.hidden(init.params, collate(tokens)) is None


def test_tokens_are_dropped_by_seed_and_step() -> None:
    backbone, init = initialise("ct_prompt", token_dropout=0.5)
    tokens = training_tokens(backbone, contract.CHOICE, contract.episodes("ct_prompt")[0].shots.train)
    draws = EpisodeDraws([Pool(tokens[:1], copy=c) for c in range(3)], 8, [13, 13, 21])
    first, again, later = (init.parameterisation.hidden(init.params, draws.batch(step)) for step in (1, 1, 2))
    assert torch.equal(first, again)  # a resumed run hides what the killed one hid
    assert torch.equal(first[0], first[1])  # and rates of one episode are comparison under the same masks
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, later)


def test_the_probe_ranks_classes_and_counts_what_it_learns() -> None:
    adapted, backbone = contract.adapt_alone("outside_probe"), contract.backbone(torch.float64)
    assert adapted.trainable == 2 * backbone.width + 2
    for each in pp.predict(adapted.prompt, contract.CHOICE, backbone, contract.CHOICE.split("test")[:3]):
        assert sum(math.exp(-nll) for nll in each.choice_nll) == pytest.approx(1)
    with pytest.raises(SpecError, match=r"'outside_probe' cannot answer task 'shout': .* answered in free text"):
        pp.adapt(pp.make_method("outside_probe"), [pp.make_episode(contract.FREE, 3, 21)], backbone)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_prefix_starts_with_the_losses_and_the_text_of_the_prompt_it_is_made_of(family: str) -> None:
    backbone, prefix = initialise("outside_prefix", family)
    _, prompt = initialise("prompt_tuning", family)
    batch = collate(backbone.tokens(["wordy", "a b"], [["yes", "no"], ["maybe", "no"]]))
    expected, got = (objective_of(backbone, i.parameterisation) for i in (prompt, prefix))
    torch.testing.assert_close(
        got.losses(prefix.params, batch), expected.losses(prompt.params, batch), rtol=1e-5, atol=0
    )
    assert got.generate(prefix.params, batch, 5) == expected.generate(prompt.params, batch, 5)


def test_sam_is_the_gradient_uphill_of_each_copy() -> None:
    from outside_pkg.sam import Sam

    start = torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch, toy, descent, radius = numbers([[1, 4], [2]]), Toy(wave), Descent(Sgd(Rate((0.1,)))), 0.3

    def gradient(x: torch.Tensor, values: list[int]) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        loss = torch.stack([wave({"prompt": leaf}, torch.tensor(v, dtype=torch.float64)) for v in values]).mean()
        return torch.autograd.grad(loss, leaf)[0]

    def after_steps(rule: Rule, steps: int = 1) -> list[State]:
        states = [rule.init({"prompt": start})]
        for _ in range(steps):
            states.append(rule.step(states[-1], batch, toy)[0])
        return states

    moved = after_steps(Sam(descent, radius), 2)
    for copy, values in enumerate([[1, 4], [2]]):
        uphill = gradient(start[copy], values)
        expected = start[copy] - 0.1 * gradient(start[copy] + radius * uphill / uphill.norm(), values)
        torch.testing.assert_close(moved[1].params["prompt"][copy], expected, rtol=1e-10, atol=0)
    assert torch.equal(after_steps(Sam(descent, 0.0))[1].params["prompt"], after_steps(descent)[1].params["prompt"])
    averaging = Averaging(Sam(descent, radius))  # what sam_multitask wraps its targets' descent in
    mean = (moved[1].params["prompt"] + moved[2].params["prompt"]) / 2
    torch.testing.assert_close(answer(averaging, after_steps(averaging, 2)[2])["prompt"], mean)


# --- a comparison, and what is in it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(site: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`promptprior compare` in a process of its own, as a user of the package runs it; the folder of its output."""
    folder = tmp_path_factory.mktemp("comparison")
    saved_model(folder / "model")
    stage = {"steps": 2, "eval_every": 1, "batch_size": 4}
    plan = {
        "methods": ["prompt_tuning", *NAMES], "sources": ["article"], "train_limit": 16, "test_limit": 6, "shots": [2],
        "targets": ["outside_vowels", "outside_endings"], "seeds": [13], "backbone": "model", "dtype": "float32",
        "output": "out", "settings": {"length": 4, "source": stage, "target": stage},
    }  # fmt: skip
    (folder / "plan.yaml").write_text(json.dumps(plan))  # JSON is YAML
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*site, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-m", "promptprior", "compare", "plan.yaml"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_comparison_holds_every_method_where_it_serves(comparison: Path) -> None:
    rows = read_rows(comparison / "out" / "results.jsonl")
    assert all(row.is_ok for row in rows), [row.error for row in rows]
    cells = {(row.method, row.target) for row in rows}
    both = ("outside_vowels", "outside_endings")
    assert cells == {(m, t) for m in ("prompt_tuning", *NAMES) for t in both} - {("outside_probe", "outside_endings")}
    for row in rows:
        assert row.metric == ("skill" if row.target == "outside_vowels" else "exact_match")
        assert row.score is not None
        assert -1 <= row.score <= 1
        assert row.cost.tokens > 0
    vowels = {row.method: row for row in rows if row.target == "outside_vowels"}
    assert vowels["prompt_tuning"].scores["skill"] == pytest.approx(2 * vowels["prompt_tuning"].scores["accuracy"] - 1)


def test_the_report_has_the_table_from_outside(comparison: Path) -> None:
    page = (comparison / "out" / "report.html").read_text()
    assert "Optimality gap at k = 2" in page


def test_artifacts_are_loaded_and_score_the_same(comparison: Path) -> None:
    backbone = pp.load(str(comparison / "model"))
    kinds = set()
    for row in read_rows(comparison / "out" / "results.jsonl"):
        prompt = pp.Prompt.from_pretrained(comparison / "out" / "prompts" / row.cell, backbone.card)
        kinds.add(prompt.header.parameterisation)
        result = pp.evaluate(prompt, load_task(row.target), backbone, limit=6)
        assert result.scores[row.metric] == row.score
    assert kinds == {"direct", "linear_probe", "kv_prefix"}


def test_a_finished_comparison_runs_nothing_again_and_a_lost_cell_alone(
    comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(comparison)
    results, said = Path("out/results.jsonl"), []
    plan = from_mapping(pp.Plan, json.loads(Path("plan.yaml").read_text()), "plan.yaml")
    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:-1]) + "\n")
    pp.compare(plan, say=said.append)
    assert f"{len(lines)} cells: {len(lines) - 1} finished before, 1 to run" in said
    lost, again = (json.loads(text) for text in (lines[-1], results.read_text().splitlines()[-1]))
    assert (lost["cell"], lost["scores"], lost["curve"]) == (again["cell"], again["scores"], again["curve"])


# --- tasks, verbs and Python -----------------------------------------------------------------------------


def test_tasks_methods_and_the_verb_are_known_to_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list", "--family", "letters"]) == 0
    assert main(["methods", "show", "ct_prompt"]) == 0
    assert main(["words", "outside_vowels"]) == 0
    assert main(["words", "--help"]) == 0
    assert main(["words"]) == 2
    printed = capsys.readouterr()
    for text in (
        "outside_vowels",
        "outside_endings",
        "token-dropout = 0.05",
        "train: 32 words, 32 different",
        "--task",
    ):
        assert text in printed.out, text
    assert "task (--task) is missing" in printed.err


def test_a_method_is_entered_in_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["ct_prompt"], name="mine", token_dropout=0.0))
    assert pp.METHODS is METHODS
    mine = pp.make_method("mine", {"token_dropout": 0.1})
    [adapted] = pp.adapt(mine, contract.episodes("mine")[:1], contract.backbone(), settings=contract.settings())
    assert adapted.prompt.header.method == "mine"


# --- what docs/extending.md says -------------------------------------------------------------------------


def test_the_code_of_the_document_is_the_packages() -> None:
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    sources = [path.read_text() for path in (*PACKAGE.rglob("*.py"), PACKAGE / "pyproject.toml")]
    assert len(blocks) >= 8
    for block in blocks:
        assert len(block.splitlines()) <= 24
        parts = block.split("    ...\n")  # what is left out
        assert any(all(part.strip("\n") in source for part in parts) for source in sources), block


def test_the_package_imports_public_modules_only() -> None:
    listed = DOCUMENT.read_text(encoding="utf-8").split("## Public modules")[1]
    public = set(re.findall(r"`(promptprior[\w.]*)`", listed))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("promptprior"):
                assert node.module in public, f"{path.name}: {node.module}"
    for module in public:
        importlib.import_module(module)
