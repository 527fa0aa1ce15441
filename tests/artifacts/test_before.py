"""Folders that an earlier commit wrote are read, written and scored as they were then (tests/fixtures/made_by)."""

import json
import re
from pathlib import Path

import pytest
import yaml

from promptprior.artifacts.artifact import Prior, Prompt, load_any
from promptprior.backbone import Backbone, load
from promptprior.evaluate import evaluate
from promptprior.tasks import Task, load_task

BEFORE = Path(__file__).parents[1] / "fixtures/before"
FOLDERS = sorted(path.parent for path in BEFORE.rglob("promptprior.json"))
PROMPTS = sorted(path.parent for path in (BEFORE / "prompts").glob("*/promptprior.json"))
README = re.compile(rb"---\n(.*?)\n---\n(.*)", re.DOTALL)
RESULTS = sorted(path.parent for path in (BEFORE / "results/prompts").glob("*/promptprior.json"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load(str(BEFORE / "backbone"), "float32", "cpu")


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(BEFORE / "data/three")


def scores(folder: Path, backbone: Backbone, task: Task) -> dict[str, float]:
    return evaluate(Prompt.from_pretrained(folder, backbone.card), task, backbone, limit=8).scores


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(BEFORE)))
def test_it_loads_and_is_written_again_byte_by_byte(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    artifact = load_any(folder, backbone.card)
    assert type(artifact) is (Prior if folder.name == "prior" else Prompt)
    artifact.save_pretrained(tmp_path / "again")
    before, again = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (folder, tmp_path / "again"))
    reason = b" No base model is named: `backbone` was a path where this was made. Load it from where you have it."
    (front, old_front), (body, old_body) = zip(
        *(README.fullmatch(files.pop("README.md")).groups() for files in (again, before)), strict=True
    )
    assert body.replace(reason, b"") == old_body  # cards did not give it before
    says, said = yaml.safe_load(front), yaml.safe_load(old_front)
    assert {**says, **said} == says  # nor did they say their licence, or scores in the Hub's words
    assert again == before


@pytest.mark.parametrize("folder", PROMPTS, ids=lambda folder: folder.name)
def test_a_prompt_scores_what_its_header_says(folder: Path, backbone: Backbone, task: Task) -> None:
    header = json.loads((folder / "promptprior.json").read_text())
    assert header["scores"]["test_examples"] == 8
    assert scores(folder, backbone, task) == pytest.approx(header["scores"]["test"], abs=1e-5)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_cells_prompt_scores_what_its_row_says(folder: Path, backbone: Backbone, task: Task) -> None:
    lines = (BEFORE / "results/results.jsonl").read_text().splitlines()
    [row] = [row for row in map(json.loads, lines) if row["cell"] == folder.name]
    expected = {name: value for name, value in row["scores"].items() if name != "answer_nll"}
    assert scores(folder, backbone, task) == pytest.approx(expected, abs=1e-5)


def test_nothing_is_missing() -> None:
    assert (len(FOLDERS), len(PROMPTS), len(RESULTS)) == (28, 6, 11)
