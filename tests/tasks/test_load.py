import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.load import available, load_task
from promptprior.tasks.task import SPLITS

ROWS = [{"text": f"text number {i}", "label": ["bad", "good"][i % 2]} for i in range(40)]
QA = [{"prompt": f"What is {i} plus one?", "completion": str(i + 1)} for i in range(40)]


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def folder(path: Path, rows: list[dict[str, object]]) -> Path:
    for start, name in zip((0, 20, 30), SPLITS, strict=True):
        write_jsonl(path / f"{name}.jsonl", rows[start : start + (20 if name == "train" else 10)])
    return path


def test_one_csv_file_is_split_by_content_and_says_so(tmp_path: Path) -> None:
    task = load_task(write_csv(tmp_path / "mood.csv", ROWS))  # type: ignore[arg-type]
    assert (task.name, task.is_choice, task.label_names) == ("mood", True, ("bad", "good"))
    assert task.split("train")[0].text.endswith("\nLabel:")
    assert sorted(len(task.split(name)) for name in SPLITS) == [4, 4, 32]
    assert "test carved out of train by content (4 examples)" in task.origin
    shuffled = write_csv(tmp_path / "other" / "mood.csv", ROWS[::-1])  # type: ignore[arg-type]
    assert {e.id for e in load_task(str(shuffled)).split("test")} == {e.id for e in task.split("test")}


def test_prompt_and_completion_are_free_text(tmp_path: Path) -> None:
    task = load_task(write_jsonl(tmp_path / "plus.jsonl", QA))  # type: ignore[arg-type]
    example = task.split("train")[0]
    assert (task.output_type, task.metrics) == ("generate_until", ("exact_match",))
    assert int(example.target) == int(example.text.split()[2]) + 1


def test_numbers_as_labels_keep_their_order(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "label": i % 11} for i in range(60)]
    task = load_task(write_csv(tmp_path / "n.csv", rows))  # type: ignore[arg-type]
    assert task.label_names == tuple(map(str, range(11)))
    assert all(e.label == int(e.text.split()[1].split("\n")[0]) % 11 for e in task.split("train"))


def test_a_folder_by_path_and_by_name(tmp_path: Path) -> None:
    folder(tmp_path / "mood", ROWS)  # type: ignore[arg-type]
    by_path, by_name = load_task(tmp_path / "mood"), load_task("mood", tmp_path)
    assert by_path == by_name
    assert by_path.fingerprint == by_name.fingerprint
    assert [len(by_path.split(name)) for name in SPLITS] == [20, 10, 10]


def test_a_folders_card_says_inputs_and_labels(tmp_path: Path) -> None:
    rows = [{"premise": f"p {i}", "my hypothesis": f"h {i}", "label": i % 2} for i in range(40)]
    card = {
        "input_columns": ["premise", "my hypothesis"],
        "columns": ["premise", "my hypothesis", "label"],
        "label_names": ["no", "yes"],
        "metric": "accuracy+macro_f1",
        "family": "nli",
        "licence": "MIT",
    }
    (folder(tmp_path / "mine", rows) / "task.json").write_text(json.dumps(card))  # type: ignore[arg-type]
    task = load_task("mine", tmp_path)
    assert task.split("train")[1].text == "premise: p 1\nmy hypothesis: h 1\nlabel:"
    assert (task.metrics, task.family, task.licence) == (("accuracy", "macro_f1"), "nli", "MIT")
    assert task.split("train")[1].target == "yes"


def test_a_card_without_labels_finds_the_answer_column(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "answers": {"text": [f"a {i}"]}} for i in range(40)]
    card = {"input_columns": ["question"], "columns": ["question", "answers"], "label_names": None, "metric": "f1+em"}
    (folder(tmp_path / "qa", rows) / "task.json").write_text(json.dumps(card))  # type: ignore[arg-type]
    task = load_task("qa", tmp_path)
    assert (task.metrics, task.split("test")[0].target) == (("squad_f1", "exact_match"), "a 30")


def test_a_folders_own_spec_wins(tmp_path: Path) -> None:
    spec = {"task": "mine", "doc_to_text": "{{label}}", "doc_to_target": "{{text}}"}
    (folder(tmp_path / "sst2", ROWS) / "spec.yaml").write_text(yaml.safe_dump(spec))  # type: ignore[arg-type]
    rows = [{**row, "label": f"{row['label']} {i}"} for i, row in enumerate(ROWS)]
    folder(tmp_path / "sst2", rows)  # type: ignore[arg-type]
    assert load_task("sst2", tmp_path).split("train")[0].target == "text number 0"


def test_the_catalogues_spec_serves_a_folder_of_its_name(tmp_path: Path) -> None:
    folder(tmp_path / "sst2", [{"sentence": row["text"], "label": i % 2} for i, row in enumerate(ROWS)])  # type: ignore[arg-type]
    assert load_task("sst2", tmp_path).split("train")[1].text == "Review: text number 1\nSentiment:"


@pytest.mark.parametrize("place", ["beside", "named folder", "data", "data_files"])
def test_a_spec_file_finds_its_data(tmp_path: Path, place: str) -> None:
    spec: dict[str, object] = {"task": "mine", "doc_to_text": "{{text}}", "doc_to_target": "{{label}}"}
    where = {"beside": tmp_path, "named folder": tmp_path / "rows", "data": tmp_path / "d" / "mine"}
    if place == "data_files":
        write_jsonl(tmp_path / "a.jsonl", ROWS)  # type: ignore[arg-type]
        spec |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": "a.jsonl"}}}
    else:
        folder(where[place], ROWS)  # type: ignore[arg-type]
    if place == "named folder":
        spec["dataset_path"] = "./rows"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    task = load_task(tmp_path / "mine.yaml", tmp_path / "d" if place == "data" else None)
    assert task.split("train")[0].text.startswith("text number")


def test_limits_sample_the_rows_and_say_so(tmp_path: Path) -> None:
    folder(tmp_path / "mood", ROWS)  # type: ignore[arg-type]
    task = load_task("mood", tmp_path, {"train": 12})
    assert [len(task.split(name)) for name in SPLITS] == [12, 10, 10]
    assert "train: 12 of 20 rows" in task.origin


def test_filtered_and_shared_rows_are_counted_in_the_origin(tmp_path: Path) -> None:
    folder(tmp_path / "mood", [*ROWS[:19], ROWS[35], *ROWS[20:]])  # type: ignore[arg-type]
    spec = {
        "task": "mood", "doc_to_text": "{{text}}", "doc_to_target": "{{label}}",
        "doc_filter": "{{not text.endswith('3')}}",
    }  # fmt: skip
    (tmp_path / "mood" / "spec.yaml").write_text(yaml.safe_dump(spec))
    origin = load_task("mood", tmp_path).origin
    assert "4 row(s) left out by doc_filter" in origin
    assert "1 train example(s) dropped whose text stands in a later split" in origin


def test_duplicate_ids_across_splits_are_an_error(tmp_path: Path) -> None:
    rows = [{"id": i % 35, **row} for i, row in enumerate(ROWS)]
    folder(tmp_path / "mood", rows)  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"task 'mood' \(.*mood\): 5 id\(s\) stand in both train and test: 0, 1, 2, 3, 4"
    ):
        load_task("mood", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "train.jsonl line 4: doc_to_text: column 'text' is null"),
        ({"label": "fine"}, "train.jsonl line 4: label 'fine' is outside the list"),
        ({"txt": "a"}, r"train.jsonl line 4: doc_to_text: missing column 'text'"),
    ],
)
def test_bad_rows_fail_with_file_and_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows: list[dict[str, object]] = [
        {"sentence": row["text"], "text": row["text"], "label": row["label"]} for row in ROWS
    ]
    rows[3] = {"label": "good", **change} if "txt" in change else {**rows[3], **change}
    spec = {
        "task": "x", "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": "label",
        "doc_to_choice": ["bad", "good"],
    }  # fmt: skip
    (folder(tmp_path / "x", rows) / "spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(DataError, match=message):
        load_task("x", tmp_path)


def test_broken_utf8_and_empty_splits_name_the_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "mood", ROWS)  # type: ignore[arg-type]
    (path / "validation.jsonl").write_text("")
    with pytest.raises(DataError, match=r"validation.jsonl: the file holds no rows"):
        load_task("mood", tmp_path)
    (path / "validation.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match=r"validation.jsonl line 1: not UTF-8"):
        load_task("mood", tmp_path)


def test_a_filter_that_refuses_everything_empties_the_split(tmp_path: Path) -> None:
    spec = {"task": "x", "doc_to_text": "{{text}}", "doc_to_target": "{{label}}", "doc_filter": "{{false}}"}
    (folder(tmp_path / "x", ROWS) / "spec.yaml").write_text(yaml.safe_dump(spec))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"train.jsonl: split 'train' is empty: doc_filter refuses every row"):
        load_task("x", tmp_path)


def test_columns_that_say_no_task_show_the_spec_to_write(tmp_path: Path) -> None:
    rows = [{"my question": "a", "reply": "b"}, {"my question": "c", "reply": "d"}]
    with pytest.raises(DataError, match="columns my question, reply say no task; name them text and label") as error:
        load_task(write_csv(tmp_path / "qa.csv", rows))  # type: ignore[arg-type]
    shown = yaml.safe_load(str(error.value).split("\n", 1)[1])
    assert shown["doc_to_text"] == '{{ doc["my question"] }}'
    assert shown["task"] == "qa"


def test_the_spec_an_error_shows_works(tmp_path: Path) -> None:
    rows = [{"my question": f"q {i}", "reply": f"r {i}"} for i in range(20)]
    path = write_jsonl(tmp_path / "qa" / "train.jsonl", rows)  # type: ignore[arg-type]
    with pytest.raises(DataError) as error:
        load_task(path.parent)
    (path.parent / "spec.yaml").write_text(str(error.value).split("\n", 1)[1])
    assert load_task(path.parent).split("train")[0].text.startswith("q ")


def test_labels_must_vary_and_stand_in_every_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one.csv: column 'label' holds one value only: \['a'\]"):
        load_task(write_csv(tmp_path / "one.csv", [{"text": "x", "label": "a"}, {"text": "y", "label": "a"}]))
    with pytest.raises(DataError, match=r"gap.csv line 3: column 'label' is empty"):
        load_task(write_csv(tmp_path / "gap.csv", [{"text": "x", "label": "a"}, {"text": "y", "label": ""}]))


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    folder(tmp_path / "moods", ROWS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="unknown task 'mood'; did you mean 'moods'"):
        load_task("mood", tmp_path)
    with pytest.raises(SpecError, match="unknown task 'ssst2'; did you mean 'sst2'"):
        load_task("ssst2")
    with pytest.raises(SpecError, match="unknown built-in task 'nope'"):
        load_task("builtin:nope")
    with pytest.raises(DataError, match=r"nowhere.csv: no such file or folder"):
        load_task(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="no such data folder"):
        load_task("sst2", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no training data; expected one of train.jsonl, train.csv"):
        load_task(tmp_path / "empty")
    write_jsonl(tmp_path / "t" / "test.jsonl", ROWS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="split 'train' is empty"):
        load_task(tmp_path / "t")


class FakeTable(list[dict[str, object]]):
    def shuffle(self, seed: int) -> "FakeTable":
        return FakeTable(self[::-1])

    def select(self, places: range) -> "FakeTable":
        return FakeTable(self[p] for p in places)

    def to_list(self) -> list[dict[str, object]]:
        return list(self)


def fake_hub(monkeypatch: pytest.MonkeyPatch, asked: list[tuple[object, ...]]) -> None:
    class Module:
        @staticmethod
        def load_dataset(path: str, name: str | None, split: str, **kwargs: object) -> FakeTable:
            asked.append((path, name, split, kwargs))
            return FakeTable({"sentence": f"{split} {i}", "label": i % 2} for i in range(50))

    monkeypatch.setitem(sys.modules, "datasets", Module)  # type: ignore[arg-type]


def test_a_catalogue_name_reads_the_hub_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    fake_hub(monkeypatch, asked)
    task = load_task("sst2", split_limits={"train": 30})
    assert asked == [("nyu-mll/glue", "sst2", "train", {}), ("nyu-mll/glue", "sst2", "validation", {})]
    assert task.origin.startswith("hub/nyu-mll/glue/sst2; ")
    assert len(task.split("train")) + len(task.split("validation")) == 30
    assert {e.text.split()[1] for e in task.split("test")} == {"validation"}  # GLUE's own test has no labels


def test_the_hub_can_be_asked_for_beside_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, [])
    folder(tmp_path / "sst2", [{"sentence": row["text"], "label": 0} for row in ROWS])  # type: ignore[arg-type]
    assert load_task("hub:sst2", tmp_path).origin.startswith("hub/")


def test_a_hub_that_cannot_be_read_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        @staticmethod
        def load_dataset(*args: object, **kwargs: object) -> None:
            raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setitem(sys.modules, "datasets", Offline)  # type: ignore[arg-type]
    message = r"hub/nyu-mll/glue/sst2/train: cannot be read \(ConnectionError: Couldn't reach the Hub\); offline, point"
    with pytest.raises(DataError, match=message):
        load_task("sst2")


def test_a_catalogue_spec_without_a_hub_data_set_needs_a_folder() -> None:
    with pytest.raises(SpecError, match=r"task 'mpqa' names no Hub data set \(dataset_path\); give a folder"):
        load_task("mpqa")


def test_a_built_in_task_by_either_name(tmp_path: Path) -> None:
    from promptprior.tasks import builtin

    name = builtin.names()[0]
    assert load_task(name).fingerprint == load_task(f"builtin:{name}", tmp_path).fingerprint


def test_available_lists_folders_the_suite_and_the_hub(tmp_path: Path) -> None:
    folder(tmp_path / "mood", ROWS)  # type: ignore[arg-type]
    cards = {(card.source, card.name): card for card in available(tmp_path)}
    assert cards["data", "mood"].labels == 2
    assert cards["hub", "sst2"].family == "sentiment"
    assert ("hub", "mpqa") not in cards
    assert sum(source == "builtin" for source, _ in cards) >= 24
