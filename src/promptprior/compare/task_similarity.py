"""How like two tasks are, by five measures, and how well a measure foretells what a source is worth to a target.

Qin et al. 2023 relate gains to task similarity; their measure was not recovered (papers.md 3.4). Ours: all tasks train
a prompt for a few steps on their shots, as copies of one run from one start; compared is what training ADDED to it.

    prompt    cosine of the whole prompts' displacement
    token     cosine of the displacement of the average token (SPoT's task embedding, Vu et al. 2022)
    gradient  cosine of the loss gradients at the start
    label     Jaccard overlap of the answers
    format    Jaccard overlap of the words that stand in nearly all texts of a task: its template
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.config.choices import Measure
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.fit import RunControl, make_run_context
from promptprior.methods.run_context import InitialParams, RunContext, stacked
from promptprior.notation import Float, Tensor
from promptprior.objectives.objective import loss_and_gradient
from promptprior.report.results import BackboneName
from promptprior.report.similarity_gain import MEASURES, Similarity, TaskSimilarity, similar_sources
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool, k_shot
from promptprior.tasks.task import Task, normalised

TEMPLATE_SHARE = 0.9  # a word in at least this share of a task's texts belongs to its template


def task_similarity(
    targets: Sequence[Task],
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    shots: int = 16,
    seed: int = 13,
    steps: int = 20,
) -> TaskSimilarity:
    """Every source against every target, with what it was measured with, as results keep it."""
    pairs = similarities(targets, sources, backbone, settings, shots, seed, steps)
    card = backbone.card
    return TaskSimilarity(BackboneName(card.name, card.fingerprint), shots, seed, steps, tuple(pairs))


def similarities(
    targets: Sequence[Task],
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    shots: int = 16,
    seed: int = 13,
    steps: int = 20,
) -> list[Similarity]:
    """Every source against every target. All tasks are seen through a k-shot draw of their training splits."""
    tasks = [*sources, *targets]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise SpecError(f"{', '.join(sorted({n for n in names if names.count(n) > 1}))}: named twice among the tasks")
    context = make_run_context(backbone, settings or Settings(), RunControl())
    added, gradients = footprints(context, tasks, shots, seed, steps)
    tables = {
        "prompt": cosines(added.flatten(1)),
        "token": cosines(added.mean(1)),
        "gradient": cosines(gradients.flatten(1)),
        "label": overlaps([answers(task) for task in tasks]),
        "format": overlaps([template(task) for task in tasks]),
    }
    return [
        Similarity(names[s], names[t], **{m: float(table[s, t]) for m, table in tables.items()})
        for t in range(len(sources), len(tasks))
        for s in range(len(sources))
    ]


def rank_sources(
    target: Task,
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    by: Measure = "gradient",
    shots: int = 16,
    seed: int = 13,
    steps: int = 20,
) -> list[Similarity]:
    """The sources of one target, the most similar first."""
    found = similarities([target], sources, backbone, settings, shots, seed, steps)
    return similar_sources(found, by).get(target.name, [])


def footprints(
    context: RunContext, tasks: Sequence[Task], shots: int, seed: int, steps: int
) -> tuple[Float[Tensor, "C L D"], Float[Tensor, "C L D"]]:
    """What a few steps on each task's shots add to one common start, and the gradients at that start."""
    start = stacked([context.initial_prompt(seed, "similarity")] * len(tasks))
    tokens = [training_tokens(context.backbone, task, k_shot(task, shots, seed).train) for task in tasks]
    stage = replace(context.settings.target, steps=steps, schedule="constant")
    pools = [Pool(some, copy=c) for c, some in enumerate(tokens)]
    draws = EpisodeDraws(pools, stage.batch_size, [seed] * len(tasks))
    key = context.key("similarity", shots, seed, steps, *(task.fingerprint for task in tasks))
    run = context.descent(key, stage, InitialParams(context.direct(), start), draws)
    everything = collate([t for some in tokens for t in some], [c for c, some in enumerate(tokens) for _ in some])
    _, gradient = loss_and_gradient(run.objective, start, everything)
    return context.train(run, "similarity").last["prompt"] - start["prompt"], gradient["prompt"]


def cosines(rows: Float[Tensor, "C n"]) -> Float[Tensor, "C C"]:
    """Cosine of every two rows; 0 where one is zero."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def overlaps(sets: Sequence[frozenset[str]]) -> Float[Tensor, "C C"]:
    """Jaccard overlap of every two sets; 0 where both are empty."""
    table = [[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets]
    return torch.tensor(table, dtype=torch.float64)


def answers(task: Task) -> frozenset[str]:
    """The normalised answers of a task's training split."""
    return frozenset(normalised(example.target) for example in task.split("train"))


def template(task: Task) -> frozenset[str]:
    """The words in nearly all texts of a task."""
    texts = [set(normalised(example.text).split()) for example in task.split("train")]
    counts = Counter(word for text in texts for word in text)
    return frozenset(word for word, count in counts.items() if count >= TEMPLATE_SHARE * len(texts))


__all__ = ["MEASURES", "Measure", "Similarity", "TaskSimilarity", "rank_sources", "similarities", "task_similarity"]
