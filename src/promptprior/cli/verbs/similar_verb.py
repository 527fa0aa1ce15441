"""promptprior similar: which sources are like a target, by five measures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptprior.cli.plans import BACKBONE, DATA, DEVICE, DTYPE
from promptprior.cli.verb import Verb
from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.choices import Measure
from promptprior.config.training import Settings, setting
from promptprior.errors import SpecError

if TYPE_CHECKING:
    from promptprior.backbone import Backbone
    from promptprior.report.similarity_gain import Similarity, TaskSimilarity
    from promptprior.tasks import Task


@dataclass(frozen=True)
class SimilarPlan:
    """Everything `promptprior similar` is told."""

    target: tuple[str, ...] = setting((), "target task, or several: names, files or folders")
    sources: tuple[str, ...] = setting((), "source tasks to rank: names, files or folders")
    by: Measure = setting("gradient", "measure that ranks")
    shots: int = setting(16, "examples per class that each task is seen through")
    seed: int = setting(13, "draw of shots, start and batches")
    steps: int = setting(20, "steps that each task's prompt is trained for")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    json: bool = setting(False, "print one JSON object instead of a table")
    output: Path | None = setting(None, "write it there; reports read similarity.json beside results.jsonl")
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("target", "sources"):
            if not getattr(self, name):
                raise SpecError(f"{name} (--{name}) is missing: name the tasks to compare")
        if self.shots < 1 or self.steps < 1:
            raise SpecError(f"shots and steps must be at least 1; got --shots {self.shots} --steps {self.steps}")


def run(plan: SimilarPlan, dry_run: bool) -> None:
    """Measure, and print the sources of each target, the most similar first."""
    from promptprior.cli.common import load_backbone
    from promptprior.compare.task_similarity import SimilarityProbe, task_similarity
    from promptprior.report.similarity_gain import similar_sources, write_similarity
    from promptprior.tasks import load_task

    sources = [load_task(name, plan.data) for name in plan.sources]
    targets = [load_task(name, plan.data) for name in plan.target]
    backbone = load_backbone(plan)
    if dry_run:
        return print(price(plan, backbone, [*sources, *targets]))
    probe = SimilarityProbe(plan.shots, plan.seed, plan.steps)
    found = task_similarity(targets, sources, backbone, plan.settings, probe)
    if plan.output is not None:
        write_similarity(found, plan.output)
    ranks = similar_sources(found.pairs, plan.by)
    return print(as_json(found, ranks, plan.by) if plan.json else "\n\n".join(blocks(ranks, plan.by)))


def price(plan: SimilarPlan, backbone: "Backbone", tasks: "Sequence[Task]") -> str:
    """What it would cost."""
    from promptprior.cli.common import cost_line
    from promptprior.compare.cost_estimate import source_cost

    stage = replace(plan.settings.target, steps=plan.steps)
    tokens = len(tasks) * source_cost(backbone, tasks, stage, plan.settings.length)
    said = f"{plan.steps} steps on {plan.shots} shots per class of each of {len(tasks)} tasks"
    return f"{said}\n{cost_line(backbone, tasks[0], plan.settings.length, tokens)}"


def blocks(ranks: "Mapping[str, Sequence[Similarity]]", by: Measure) -> Iterator[str]:
    """A table for each target."""
    from promptprior.cli.score_lines import table
    from promptprior.report.similarity_gain import MEASURES

    measures = [by, *(m for m in MEASURES if m != by)]
    for target, pairs in ranks.items():
        rows = [[str(r), p.source, *(f"{getattr(p, m):.3f}" for m in measures)] for r, p in enumerate(pairs, 1)]
        yield f"{target}\n{table(['rank', 'source', *measures], rows)}"


def as_json(found: "TaskSimilarity", ranks: "Mapping[str, Sequence[Similarity]]", by: Measure) -> str:
    """Everything, with the rank of each source among those of its target."""
    pairs = [{"rank": r, **asdict(pair)} for some in ranks.values() for r, pair in enumerate(some, 1)]
    return json.dumps({**asdict(found), "by": by, "pairs": pairs})


VERB = Verb(
    "similar",
    SimilarPlan,
    run,
    "promptprior similar --target subj --sources sst2,trec,ag_news --data DIR",
)
