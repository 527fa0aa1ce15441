"""Partitions that leak are refused."""

import json
from pathlib import Path

import pytest

from promptprior.compare.partition import sides
from promptprior.errors import DataError, SpecError

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
