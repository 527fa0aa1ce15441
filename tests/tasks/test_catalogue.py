"""The catalogue against the data folder that lies beside the repository (skipped where it is absent)."""

import json
import time
from pathlib import Path

import pytest

from promptprior.tasks.loading.check import check_task, shared_text
from promptprior.tasks.loading.load import available, catalogue_names, catalogue_spec, load_task
from promptprior.tasks.loading.partitions import read_partitions
from promptprior.tasks.loading.readers import read_data_file, rows_of
from promptprior.tasks.loading.spec import CATALOGUE, TaskSpec, render
from promptprior.tasks.task import SPLITS

DATA = Path(__file__).parents[3] / "shared" / "data"
FOLDERS = sorted(path.parent.name for path in DATA.glob("*/task.json"))
needs_data = pytest.mark.skipif(not FOLDERS, reason=f"the data folder {DATA} is absent")
NAMES = FOLDERS or ["sst2"]  # a name for the skip to be told of


@pytest.fixture(scope="module")
def specs() -> dict[str, TaskSpec]:
    return {name: catalogue_spec(name) for name in catalogue_names()}


def test_specs_are_named_like_their_file_and_say_where_they_come_from(specs: dict[str, TaskSpec]) -> None:
    assert len(specs) > 120
    for name, spec in specs.items():
        assert spec.task == name
        assert spec.metadata.family != "other"
        assert spec.metadata.licence
        assert spec.metrics
    assert not [path for path in CATALOGUE.iterdir() if path.suffix != ".yaml"]


def test_the_suites_of_the_papers_are_there(specs: dict[str, TaskSpec]) -> None:
    glue = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    super_glue = {"boolq", "cb", "copa", "multirc", "record", "wic", "wsc"}
    mrqa = {"mrqa_squad", "mrqa_newsqa", "mrqa_triviaqa", "mrqa_searchqa", "mrqa_hotpotqa", "mrqa_nq"}
    others = {"winogrande", "yelp_polarity", "scitail", "paws"}  # the rest of ATTEMPT's line
    assert glue | super_glue | mrqa | others <= set(specs)


def test_choices_of_short_lists_differ_in_their_first_word(specs: dict[str, TaskSpec]) -> None:
    for name, spec in specs.items():
        words = [choice.split()[0] for choice in spec.fixed_choices]
        assert len(words) > 20 or len(set(words)) == len(words), name


@needs_data
def test_every_folder_has_a_spec() -> None:
    assert set(FOLDERS) <= set(catalogue_names())


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_every_folder_loads_by_its_spec(name: str) -> None:
    task = load_task(name, DATA, dict.fromkeys(SPLITS, 50))
    card = json.loads((DATA / name / "task.json").read_text())
    assert all(task.split(split) for split in SPLITS)
    assert not [problem for problem in check_task(task) if problem.level == "error"]
    assert (task.family, task.licence) == (card["family"], card["licence"])
    if task.is_choice and task.label_names:
        assert list(task.label_names) == card["label_names"]
    for example in task.split("test"):
        assert example.text == example.text.rstrip()
        assert example.target == (
            example.choices[example.label] if example.label is not None else example.references[0]
        )


@needs_data
@pytest.mark.parametrize("name", [n for n in NAMES if catalogue_spec(n).output_type == "multiple_choice"])
def test_labels_are_the_folders_own(name: str) -> None:
    """The rendered label is the `label` column, also where the spec computes it from the Hub's columns."""
    rows = read_data_file(DATA / name / "validation.jsonl")
    assert [e.label for e in render(catalogue_spec(name), rows)] == [row["label"] for row in rows.values]


@needs_data
@pytest.mark.parametrize(
    ("name", "text", "target"),
    [
        ("sst2", "Review: ", ("negative", "positive")),
        ("mnli", "Premise: ", ("yes", "maybe", "no")),
        ("boolq", "", ("no", "yes")),
    ],
)
def test_whole_tasks(name: str, text: str, target: tuple[str, ...]) -> None:
    task = load_task(name, DATA)
    sizes = json.loads((DATA / name / "task.json").read_text())["num_rows"]
    assert {split: len(task.split(split)) for split in SPLITS} == sizes
    assert {e.target for e in task.split("train")} == set(target)
    assert all(e.text.startswith(text) for e in task.split("train"))


@needs_data
def test_some_templates_word_by_word() -> None:
    rows = {
        "aqua_rat": {"question": "2+2?", "options": ["A)3", "B) 4"], "correct": "B"},
        "copa": {
            "premise": "It rained.",
            "choice1": "I got wet.",
            "choice2": "I slept.",
            "question": "effect",
            "label": 0,
        },
        "gap": {"Text": "Ann saw her dog.", "Pronoun": "her", "Pronoun-offset": 8, "A": "Ann", "B": "Eve", "label": 0},
        "stsb": {"sentence1": "a", "sentence2": "b", "label": 3.2500001},
        "gsm8k": {"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
        "winogrande": {"sentence": "The _ fell.", "option1": "cup", "option2": "sky", "answer": "1"},
        "blimp_ellipsis_n_bar_1": {"sentence_good": "g", "sentence_bad": "b", "pair_id": 7},
    }
    got = {name: render(catalogue_spec(name), rows_of([row], "x"))[0] for name, row in rows.items()}
    assert got["aqua_rat"].choices == ("3", "4")
    assert (got["copa"].text, got["copa"].target) == ("It rained so", "i got wet.")
    assert got["gap"].text == "Ann saw *her* dog.\n*her* refers to"
    assert got["stsb"].target == "3.2"
    assert got["gsm8k"].target == "2"
    assert (got["winogrande"].text, got["winogrande"].target) == ("The _ fell.\n_ is", "cup")
    assert (got["blimp_ellipsis_n_bar_1"].text, got["blimp_ellipsis_n_bar_1"].target) == (
        "A: b\nB: g\nGrammatical:",
        "B",
    )


@needs_data
def test_loading_all_of_sst2_takes_well_under_a_second() -> None:
    load_task("sst2", DATA)
    start = time.process_time()
    load_task("sst2", DATA)
    assert time.process_time() - start < 0.7


@needs_data
def test_leakage_the_data_folder_counts_is_found() -> None:
    """overlaps.json, counted by others on raw columns, says rotten_tomatoes trains on 89 test texts of sst2."""
    found = {
        (s.source, s.target): s.texts for s in shared_text([load_task(n, DATA) for n in ("rotten_tomatoes", "sst2")])
    }
    pairs = json.loads((DATA / "overlaps.json").read_text())["pairs"]
    assert found["rotten_tomatoes", "sst2"] == pytest.approx(pairs["rotten_tomatoes -> sst2"], rel=0.15)


@needs_data
def test_partitions_name_tasks_that_load() -> None:
    partitions = read_partitions(DATA)
    assert {"quick_smoke", "cls_to_cls", "attempt_bmtpt"} <= set(partitions)
    for partition in partitions.values():
        assert partition.sources
        assert {*partition.sources, *partition.dev, *partition.targets} <= set(FOLDERS)
    assert "multirc" in {*partitions["attempt_bmtpt"].sources, *partitions["attempt_bmtpt"].targets}


@needs_data
def test_every_folder_is_listed_with_its_sizes() -> None:
    cards = {card.name: card for card in available(DATA) if card.source == "data"}
    assert set(cards) == set(FOLDERS)
    assert cards["cb"].sizes == {"train": 250, "validation": 28, "test": 28}
