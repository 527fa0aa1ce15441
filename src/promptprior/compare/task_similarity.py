"""How similar two tasks are, by five measures.

Qin et al. 2023 relate gains to task similarity; their measure was not recovered (papers.md 3.4). Ours: all tasks train
a prompt for a few steps on their shots, as copies of one run from the same start; what training ADDED is compared.

    prompt    cosine of the whole prompts' displacement
    token     cosine of the displacement of the average token (SPoT's task embedding, Vu et al. 2022)
    gradient  cosine of the loss gradients at the start
    label     Jaccard overlap of the answers
    format    Jaccard overlap of the words that stand in nearly all texts of a task: its template
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.config.choices import Measure
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.fit import RunControl, make_run_context
from promptprior.methods.run_context import InitialParams, stacked
from promptprior.notation import Float, Tensor
from promptprior.objectives.objective import loss_and_gradient
from promptprior.report.results import BackboneName
from promptprior.report.similarity_gain import MEASURES, Similarity, TaskSimilarity, similar_sources
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool, k_shot
from promptprior.tasks.task import Task, normalised

TEMPLATE_SHARE = 0.9  # a word in at least this share of a task's texts belongs to its template


@dataclass(frozen=True)
class SimilarityProbe:
    """What every task is measured by: so many steps on k shots of a seed."""

    shots: int = 16
    seed: int = 13
    steps: int = 20


def task_similarity(
    targets: Sequence[Task],
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    probe: SimilarityProbe | None = None,
) -> TaskSimilarity:
    """Every source against every target, with what it was measured with. Raises SpecError for tasks of one name."""
    probe = probe or SimilarityProbe()
    tasks = [*sources, *targets]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise SpecError(f"{', '.join(sorted({n for n in names if names.count(n) > 1}))}: named twice among the tasks")
    context = make_run_context(backbone, settings or Settings(), RunControl())

    # A few steps on each task's shots, all from one start, as copies of one run.
    start = stacked([context.initial_prompt(probe.seed, "similarity")] * len(tasks))
    tokens = [training_tokens(backbone, task, k_shot(task, probe.shots, probe.seed).train) for task in tasks]
    stage = replace(context.settings.target, steps=probe.steps, schedule="constant")
    pools = [Pool(texts, copy=c) for c, texts in enumerate(tokens)]
    draws = EpisodeDraws(pools, stage.batch_size, [probe.seed] * len(tasks))
    fingerprints = [task.fingerprint for task in tasks]
    key = context.key("similarity", probe.shots, probe.seed, probe.steps, *fingerprints)
    run = context.descent(key, stage, InitialParams(context.direct(), start), draws)
    all_texts = collate([t for texts in tokens for t in texts], [c for c, texts in enumerate(tokens) for _ in texts])
    gradients = loss_and_gradient(run.objective, start, all_texts)[1]["prompt"]  # [C, L, D], at the start
    added = context.train(run, "similarity").last["prompt"] - start["prompt"]  # [C, L, D]

    templates = []  # the words in nearly all texts of each task
    for task in tasks:
        texts = [set(normalised(example.text).split()) for example in task.split("train")]
        counts = Counter(word for words in texts for word in words)
        templates.append(frozenset(word for word, count in counts.items() if count >= TEMPLATE_SHARE * len(texts)))
    tables = {
        "prompt": cosine_table(added.flatten(1)),
        "token": cosine_table(added.mean(1)),
        "gradient": cosine_table(gradients.flatten(1)),
        "label": jaccard_table([frozenset(normalised(e.target) for e in task.split("train")) for task in tasks]),
        "format": jaccard_table(templates),
    }
    pairs = tuple(
        Similarity(names[s], names[t], **{measure: float(table[s, t]) for measure, table in tables.items()})
        for t in range(len(sources), len(tasks))
        for s in range(len(sources))
    )
    card = BackboneName(backbone.card.name, backbone.card.fingerprint)
    return TaskSimilarity(card, probe.shots, probe.seed, probe.steps, pairs)


def rank_sources(
    target: Task,
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    by: Measure = "gradient",
    probe: SimilarityProbe | None = None,
) -> list[Similarity]:
    """The sources of one target, the most similar first."""
    pairs = task_similarity([target], sources, backbone, settings, probe).pairs
    return similar_sources(pairs, by).get(target.name, [])


def cosine_table(rows: Float[Tensor, "C n"]) -> Float[Tensor, "C C"]:
    """Cosine of every two rows; 0 where one is zero."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return unit @ unit.T


def jaccard_table(sets: Sequence[frozenset[str]]) -> Float[Tensor, "C C"]:
    """Jaccard overlap of every two sets; 0 where both are empty."""
    table = [[len(a & b) / max(1, len(a | b)) for b in sets] for a in sets]
    return torch.tensor(table, dtype=torch.float64)


__all__ = ["MEASURES", "Measure", "SimilarityProbe", "rank_sources", "task_similarity"]
