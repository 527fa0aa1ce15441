"""Like tasks come out alike, and rank correlations agree with scipy."""

from dataclasses import fields, replace

import pytest
import torch

from promptprior.compare.task_similarity import (
    MEASURES,
    SimilarityProbe,
    cosine_table,
    jaccard_table,
    rank_sources,
    task_similarity,
)
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import tiny
from tests.world import always, choice_task

QUICK = Settings(length=3, target=Training(steps=3, batch_size=4, learning_rates=(0.3,)))
YES = choice_task("yes", always(0))
ALSO_YES = choice_task("also_yes", always(0))
UP = choice_task("up", always(0), ("up", "down"))


def test_the_like_source_comes_first_by_every_learned_measure() -> None:
    for measure in ("gradient", "prompt", "token"):
        probe = SimilarityProbe(shots=8, steps=4)
        ranked = rank_sources(ALSO_YES, [UP, YES], tiny("gpt2", torch.float32), QUICK, measure, probe)  # type: ignore[arg-type]
        assert [one.source for one in ranked] == ["yes", "up"]
        assert getattr(ranked[0], measure) > getattr(ranked[1], measure) + 0.05
    assert (ranked[0].label, ranked[1].label) == (1, 0)


def test_a_task_is_wholly_like_itself_under_another_name_and_names_are_unique() -> None:
    # the draw of shots depends on the name, so only overlaps are exactly one
    again, probe = replace(YES, name="again"), SimilarityProbe(shots=8, steps=2)
    (same,) = task_similarity([again], [YES], tiny("gpt2", torch.float32), QUICK, probe).pairs
    assert same.label == 1
    assert same.gradient > 0.5
    with pytest.raises(SpecError, match="yes: named twice"):
        task_similarity([YES], [YES], tiny("gpt2", torch.float32), QUICK)
    assert [f.name for f in fields(same)] == ["source", "target", *MEASURES]


def test_the_format_is_the_overlap_of_template_words() -> None:
    """Words that stand in nearly all texts of a task, however often others coincide."""
    films = ("good film", "bad film", "dull play", "fine play")
    tasks = []
    for name, template in (("mood", "Review: {}. Mood:"), ("same", "{} (mood, review)"), ("verdict", "Review {} is")):
        texts = [template.format(film) for film in films]
        examples = tuple(
            Example(f"{name}{i}", x, ("yes", "no")[i % 2], choices=("yes", "no"), label=i % 2)
            for i, x in enumerate(texts)
        )
        tasks.append(Task(name, "multiple_choice", ("accuracy",), {"train": examples}))
    probe = SimilarityProbe(shots=1, steps=1)
    pairs = task_similarity(tasks[:1], tasks[1:], tiny("gpt2", torch.float32), QUICK, probe).pairs
    assert {pair.source: pair.format for pair in pairs} == {"same": 1, "verdict": pytest.approx(1 / 3)}


def test_answers_are_compared_normalised() -> None:
    shouted = choice_task("shouted", always(0), ("Yes!", "No!"))
    (pair,) = task_similarity([shouted], [YES], tiny("gpt2", torch.float32), QUICK, SimilarityProbe(steps=1)).pairs
    assert pair.label == 1


def test_cosines_and_overlaps() -> None:
    table = cosine_table(torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert table.tolist() == [[1, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 1, 0], [0, 0, 0, 0]]
    assert jaccard_table([frozenset("ab"), frozenset("bc"), frozenset()]).tolist() == [
        [1, 1 / 3, 0],
        [1 / 3, 1, 0],
        [0, 0, 0],
    ]
