"""Partitions that leak are refused."""

import json
from pathlib import Path

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.partition_choice import from_partition, sides

FILE = {
    "clean": {"train": ["a", "b", "gone"], "test": ["c"]},
    "leaking": {"train": ["a", "sick"], "test": ["sick", "c"], "same_text_on_both_sides": ["a"]},
    "all_leaking": {"train": ["c"], "test": ["c"]},
    "absent": {"train": ["a"], "test": ["gone"]},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "partitions.json").write_text(json.dumps(FILE))
    for name in ("a", "b", "c", "sick"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_clean_partition_is_restricted_to_what_is_there(data: Path) -> None:
    found = sides(data, "clean")
    assert (found.sources, found.targets, found.dropped) == (("a", "b"), ("c",), ())


def test_a_target_among_the_sources_is_refused(data: Path) -> None:
    """papers.md 3.6.6: `sick` stood on both sides of non-NLI -> NLI."""
    with pytest.raises(SpecError, match=r"'leaking'.*: a, sick stand on both sides.*shared drop"):
        sides(data, "leaking")
    with pytest.raises(SpecError, match="no source is left"):
        sides(data, "leaking", shared="drop")
    assert sides(data, "leaking", shared="keep").sources == ("a", "sick")
    with pytest.raises(SpecError, match="c stand"):
        sides(data, "all_leaking")


def test_nothing_to_transfer_to_and_unknown_names(data: Path) -> None:
    with pytest.raises(SpecError, match=r"none of its targets is there \(gone"):
        sides(data, "absent")
    with pytest.raises(DataError, match="did you mean 'clean'"):
        sides(data, "cleen")


def test_settings_take_the_sides_that_are_not_given(data: Path) -> None:
    both = from_partition({"partition": "clean", "data": str(data), "shots": "4"}, ("sources", "targets"))
    assert (both["sources"], both["targets"], both["shots"]) == (("a", "b"), ("c",), "4")
    one = from_partition({"partition": "clean", "data": str(data), "targets": "b"}, ("sources", "targets"))
    assert (one["sources"], one["targets"]) == (("a", "b"), "b")
    assert "targets" not in from_partition({"partition": "clean", "data": str(data)}, ("sources",))
    assert from_partition({"shots": "4"}, ("sources",)) == {"shots": "4"}


def test_a_partition_from_another_file(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.json"
    other.write_text(json.dumps({"own": {"train": ["b"], "test": ["c"]}}))
    found = from_partition({"partition": "own", "data": str(data), "partitions": str(other)}, ("sources",))
    assert found["sources"] == ("b",)
    with pytest.raises(DataError, match=r"mine\.json: .*did you mean 'own'"):
        from_partition({"partition": "owm", "data": str(data), "partitions": str(other)}, ("sources",))


def test_what_a_partition_needs(data: Path) -> None:
    with pytest.raises(SpecError, match=r"partition clean \(--partition\) needs the folder of its tasks"):
        from_partition({"partition": "clean"}, ("sources",))
    leaking = {"partition": "leaking", "data": str(data)}
    with pytest.raises(SpecError, match="a, sick stand on both sides"):
        from_partition(leaking, ("sources",))
    with pytest.raises(SpecError, match=r"did you mean 'drop'.*--shared"):
        from_partition(leaking | {"shared": "dropp"}, ("sources",))
    assert from_partition(leaking | {"shared": "keep"}, ("sources",))["sources"] == ("a", "sick")


def test_the_real_partitions(pytestconfig: pytest.Config) -> None:
    real = pytestconfig.rootpath / ".." / "shared" / "data"
    if not real.is_dir():
        pytest.skip("no shared data")
    assert len(sides(real, "cls_to_cls").targets) >= 5
    with pytest.raises(SpecError, match="share text"):
        sides(real, "crossfit_train_classification_test_classification")
    found = sides(real, "crossfit_train_classification_test_classification", shared="drop")
    assert found.dropped
    assert not set(found.dropped) & set(found.sources)
