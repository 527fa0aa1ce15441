import json
from pathlib import Path

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.partitions import from_partition, read_partition, read_partitions

FILE = {
    "mine": {
        "kind": "own",
        "train": ["a", "b", "gone"],
        "dev": ["c"],
        "test": ["d", "lost"],
        "same_text_on_both_sides": {"pair": {"source": ["a"], "target": ["d", "gone"]}},
        "task_on_both_sides": ["b"],
        "description": "words",
    },
    "grouped": {"train": ["a"], "usable_train": ["b"], "test_groups": {"x": ["c", "d"], "y": ["c"]}},
    "overlap_groups": {"x": ["a", "b"]},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / name).mkdir()
    (tmp_path / "partitions.json").write_text(json.dumps(FILE))
    return tmp_path


def test_partitions_keep_the_tasks_that_are_there(data: Path) -> None:
    mine = read_partition(data, "mine")
    assert (mine.sources, mine.dev, mine.targets) == (("a", "b"), ("c",), ("d",))
    assert mine.absent == ("gone", "lost")
    assert mine.shared_text == ("a", "b", "d")
    assert (mine.kind, mine.note) == ("own", "words")
    assert read_partition(data, "grouped").sources == ("b",)
    assert read_partition(data, "grouped").targets == ("c", "d")
    assert sorted(read_partitions(data)) == ["grouped", "mine"]


def test_bad_files_and_names(data: Path) -> None:
    with pytest.raises(DataError, match="unknown partition 'mime'; did you mean 'mine'"):
        read_partition(data, "mime")
    (data / "partitions.json").write_text("[1]")
    with pytest.raises(DataError, match="expected an object of partitions, got list"):
        read_partitions(data)
    (data / "partitions.json").write_text("{")
    with pytest.raises(DataError, match=r"partitions.json line 1: not JSON"):
        read_partitions(data)
    (data / "partitions.json").unlink()
    with pytest.raises(DataError, match="no such file; a data folder without it has no named partitions"):
        read_partitions(data)


LEAKS = {
    "clean": {"train": ["a", "b", "gone"], "test": ["c"]},
    "leaking": {"train": ["a", "sick"], "test": ["sick", "c"], "same_text_on_both_sides": ["a"]},
    "all_leaking": {"train": ["c"], "test": ["c"]},
    "absent": {"train": ["a"], "test": ["gone"]},
}


@pytest.fixture
def leaks(tmp_path: Path) -> Path:
    (tmp_path / "partitions.json").write_text(json.dumps(LEAKS))
    for name in ("a", "b", "c", "sick"):
        (tmp_path / name).mkdir()
    return tmp_path


def sides(data: Path, name: str, **settings: object) -> dict[str, object]:
    """The sources and targets of a partition."""
    given = {"partition": name, "data": str(data)}
    found = from_partition({**given, **settings}, ("sources", "targets"))
    return {side: found[side] for side in ("sources", "targets")}


def test_a_clean_partition_is_restricted_to_what_is_there(leaks: Path) -> None:
    assert sides(leaks, "clean") == {"sources": ("a", "b"), "targets": ("c",)}


def test_a_target_among_the_sources_is_refused(leaks: Path) -> None:
    """papers.md 3.6.6: `sick` stood on both sides of non-NLI -> NLI."""
    with pytest.raises(SpecError, match=r"'leaking'.*: a, sick stand on both sides.*shared drop"):
        sides(leaks, "leaking")
    with pytest.raises(SpecError, match="no source is left"):
        sides(leaks, "leaking", shared="drop")
    assert sides(leaks, "leaking", shared="keep")["sources"] == ("a", "sick")
    with pytest.raises(SpecError, match="c stand"):
        sides(leaks, "all_leaking")


def test_nothing_to_transfer_to_and_unknown_names(leaks: Path) -> None:
    with pytest.raises(SpecError, match=r"none of its targets is there \(gone"):
        sides(leaks, "absent")
    with pytest.raises(DataError, match="did you mean 'clean'"):
        sides(leaks, "cleen")


def test_settings_take_the_sides_that_are_not_given(leaks: Path) -> None:
    both = from_partition({"partition": "clean", "data": str(leaks), "shots": "4"}, ("sources", "targets"))
    assert (both["sources"], both["targets"], both["shots"]) == (("a", "b"), ("c",), "4")
    one = from_partition({"partition": "clean", "data": str(leaks), "targets": "b"}, ("sources", "targets"))
    assert (one["sources"], one["targets"]) == (("a", "b"), "b")
    assert "targets" not in from_partition({"partition": "clean", "data": str(leaks)}, ("sources",))
    assert from_partition({"shots": "4"}, ("sources",)) == {"shots": "4"}


def test_a_partition_from_another_file(leaks: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.json"
    other.write_text(json.dumps({"own": {"train": ["b"], "test": ["c"]}}))
    found = from_partition({"partition": "own", "data": str(leaks), "partitions": str(other)}, ("sources",))
    assert found["sources"] == ("b",)
    with pytest.raises(DataError, match=r"mine\.json: .*did you mean 'own'"):
        from_partition({"partition": "owm", "data": str(leaks), "partitions": str(other)}, ("sources",))


def test_what_a_partition_needs(leaks: Path) -> None:
    with pytest.raises(SpecError, match=r"partition clean \(--partition\) needs the folder of its tasks"):
        from_partition({"partition": "clean"}, ("sources",))
    leaking = {"partition": "leaking", "data": str(leaks)}
    with pytest.raises(SpecError, match="a, sick stand on both sides"):
        from_partition(leaking, ("sources",))
    with pytest.raises(SpecError, match=r"did you mean 'drop'.*--shared"):
        from_partition(leaking | {"shared": "dropp"}, ("sources",))
    assert from_partition(leaking | {"shared": "keep"}, ("sources",))["sources"] == ("a", "sick")


def test_the_real_partitions(pytestconfig: pytest.Config) -> None:
    real = pytestconfig.rootpath.parent / "shared" / "data"
    if not real.is_dir():
        pytest.skip(f"the data folder {real} is absent")
    assert len(sides(real, "cls_to_cls")["targets"]) >= 5  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="share text"):
        sides(real, "crossfit_train_classification_test_classification")
    name = "crossfit_train_classification_test_classification"
    found, partition = sides(real, name, shared="drop"), read_partition(real, name)
    assert set(partition.sources) - set(found["sources"]) == set(partition.sources) & {  # type: ignore[call-overload]
        *partition.shared_text, *partition.targets
    }  # fmt: skip
    assert found["sources"] != partition.sources
