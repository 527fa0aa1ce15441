"""Does similarity predict gains? Against planted gains, and rank correlations by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from promptprior.errors import DataError
from promptprior.report.results import Grid, Row
from promptprior.report.results import parse as parse_json
from promptprior.report.similarity_gain import (
    Similarity,
    TaskSimilarity,
    read_similarity,
    similarity_gain_correlation,
    write_similarity,
)
from tests.report.result_rows import TARGETS, grid_rows, result_row, task_similarity

FOUND = parse_json(TaskSimilarity, task_similarity(), "here")


def grid(rows):
    return Grid(tuple(map(Row.from_json, rows)), "prompt_tuning")


def row(method, target, score, sources=(), k=16, seed=1):
    place = {"method": method, "target": target, "score": score, "sources": list(sources), "k": k, "seed": seed}
    return result_row(cell=str(place), **place)


def test_there_and_back(tmp_path):
    path = write_similarity(FOUND, tmp_path / "similarity.json")
    assert read_similarity(path) == FOUND
    assert read_similarity(tmp_path / "absent.json") is None
    path.write_text(json.dumps(task_similarity() | {"steps": "20"}))
    with pytest.raises(DataError, match=r"similarity\.json: 'steps' is '20'; expected a whole number"):
        read_similarity(path)


def test_several_files_are_one(tmp_path):
    (first, *_), (*_, last) = FOUND.pairs, FOUND.pairs
    paths = [
        write_similarity(replace(FOUND, pairs=(pair,)), tmp_path / f"{name}.json")
        for name, pair in (("a", first), ("b", last))
    ]
    assert read_similarity(*paths, tmp_path / "absent.json") == replace(FOUND, pairs=(first, last))
    write_similarity(replace(FOUND, pairs=(last,), shots=1), paths[1])
    with pytest.raises(DataError, match=r"b\.json and .*a\.json were measured with different"):
        read_similarity(*paths)


def test_gains_are_paired_differences_by_sources_averaged_over_k():
    rows = [
        row("prompt_tuning", "a", 0.5),
        row("prompt_tuning", "a", 0.6, seed=2),
        row("prompt_tuning", "a", 0.7, k=4),
        row("spot", "a", 0.6, ["x"]),
        row("spot", "a", 0.9, ["x"], seed=3),  # nothing to pair it with
        row("spot", "a", 0.9, ["x"], k=4),
        row("spot", "a", 0.4, ["y", "x"]),  # other sources: another place, though the same cell of a grid
        row("zero_shot", "a", 0.1),
    ]
    pairs = tuple(Similarity(source, "a", value, *[0.0] * 4) for source, value in (("x", 0.25), ("y", 0.75)))
    correlations = similarity_gain_correlation(grid(rows), replace(FOUND, pairs=pairs))
    assert {method for method, _ in correlations} == {"spot"}
    x, x_and_y = (0.25, pytest.approx((0.1 + 0.2) / 2)), (0.5, pytest.approx(-0.1))
    assert [point[1:] for point in correlations["spot", "prompt"].points] == [x, x_and_y]


def test_what_was_planted_is_predicted_and_noise_is_not():
    told = similarity_gain_correlation(grid(grid_rows()), FOUND)
    gradient, label = told["multitask", "gradient"], told["multitask", "label"]
    assert gradient.correlation.low > 0.5
    assert label.correlation.low < 0 < label.correlation.high
    assert len(gradient.points) == len(TARGETS)
    assert gradient.correlation.estimate == pytest.approx(spearmanr(*np.array([p[1:] for p in gradient.points]).T)[0])
    likes = {p.target: p.gradient for p in FOUND.pairs if p.source == "hypernym"}
    assert {t: x for t, x, _ in gradient.points} == pytest.approx(likes)  # the mean of three sources 0.1 apart


def test_few_points_have_no_correlation_and_unknown_sources_no_point():
    some = grid([row("prompt_tuning", "antonym", 0.5), row("spot", "antonym", 0.6, ["country_of"])])
    assert {(len(f.points), f.correlation) for f in similarity_gain_correlation(some, FOUND).values()} == {(1, None)}
    other = grid([row("prompt_tuning", "antonym", 0.5), row("spot", "antonym", 0.6, ["elsewhere"])])
    assert {f.points for f in similarity_gain_correlation(other, FOUND).values()} == {()}
