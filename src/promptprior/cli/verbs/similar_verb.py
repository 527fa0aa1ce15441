"""promptprior similar: which sources are like a target, by five measures."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from promptprior.cli.output import format_table
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
from promptprior.config.choices import Measure
from promptprior.config.mapping import check_bounds
from promptprior.config.plan_file import check_output, plan_beside, write_outputs
from promptprior.config.training import SEED_BOUNDS, SHOT_BOUNDS, Settings, Training, setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class SimilarPlan:
    """The settings of `promptprior similar`."""

    target: tuple[str, ...] = setting((), "target task, or several: names, files or folders")
    sources: tuple[str, ...] = setting((), "source tasks to rank: names, files or folders")
    by: Measure = setting("gradient", "measure that ranks")
    shots: int = setting(16, "examples per class that each task is seen through", **SHOT_BOUNDS)
    seed: int = setting(13, "draw of shots, start and batches", **SEED_BOUNDS)
    steps: int = setting(20, "steps that each task's prompt is trained for", least=1, most=10**8)
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    json: bool = setting(False, "print one JSON object instead of a table")
    output: Path | None = setting(None, "write it there; reports read similarity.json beside results.jsonl")
    force: bool = setting(False, FORCE)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("target", "sources"):
            if not getattr(self, name):
                raise SpecError(f"{name} (--{name}) is missing: name the tasks to compare")
        check_bounds(self)

    def run(self, dry_run: bool) -> None:
        """Measure, and print the sources of each target, the most similar first."""
        from promptprior.cli.common import cost_line
        from promptprior.compare.task_similarity import SimilarityProbe, task_similarity
        from promptprior.cost_estimate import source_cost, text_tokens
        from promptprior.methods import make_method
        from promptprior.report.similarity_gain import MEASURES, similar_sources, write_similarity
        from promptprior.tasks import load_task

        if self.output is not None:
            inputs = (*self.target, *self.sources, self.data, self.backbone)
            check_output(self.output, "similar", inputs, force=self.force)
        sources = [load_task(name, self.data) for name in self.sources]
        targets = [load_task(name, self.data) for name in self.target]
        backbone, tasks = load_backbone(self), [*sources, *targets]
        if dry_run:
            settings = replace(self.settings, source=Training(self.steps, self.settings.target.batch_size))
            tokens = len(tasks) * source_cost(make_method("multitask"), text_tokens(backbone, tasks), 1, settings)
            print(f"{self.steps} steps on {self.shots} shots per class of each of {len(tasks)} tasks")
            return print(cost_line(backbone, tasks[0], self.settings.length, tokens))
        probe = SimilarityProbe(self.shots, self.seed, self.steps)
        found = task_similarity(targets, sources, backbone, self.settings, probe)
        if self.output is not None:
            writers = {self.output: lambda path: write_similarity(found, path)}
            write_outputs(self, plan_beside(self.output), "similar", writers)
        ranks = similar_sources(found.pairs, self.by)
        if self.json:
            pairs = [{"rank": r, **asdict(pair)} for of_target in ranks.values() for r, pair in enumerate(of_target, 1)]
            return print(json.dumps({**asdict(found), "by": self.by, "pairs": pairs}))
        measures, blocks = [self.by, *(m for m in MEASURES if m != self.by)], []
        for target, pairs_of_target in ranks.items():
            rows = [
                [str(rank), pair.source, *(f"{getattr(pair, measure):.3f}" for measure in measures)]
                for rank, pair in enumerate(pairs_of_target, 1)
            ]
            blocks.append(f"{target}\n{format_table(['rank', 'source', *measures], rows)}")
        return print("\n\n".join(blocks))


VERB = Verb(
    "similar",
    SimilarPlan,
    SimilarPlan.run,
    "promptprior similar --target subj --sources sst2,trec,ag_news --data DIR",
)
