import json
from pathlib import Path

import pytest

from promptprior.errors import DataError
from promptprior.tasks.loading.partitions import read_partition, read_partitions

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
    with pytest.raises(DataError, match=r"partitions.json line 1: bad JSON"):
        read_partitions(data)
    (data / "partitions.json").unlink()
    with pytest.raises(DataError, match="no such file; a data folder without it has no named partitions"):
        read_partitions(data)
