"""promptprior fit: source tasks to a prior."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from promptprior.cli.output import show
from promptprior.cli.verb import (
    BACKBONE,
    DATA,
    DEVICE,
    DTYPE,
    FORCE,
    MLFLOW,
    OPTIONS,
    TENSORBOARD,
    Verb,
    tasks_of_partition,
)
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
from promptprior.config.choices import Shared
from promptprior.config.mapping import check_bounds
from promptprior.config.plan_file import check_output, is_plan_of, save_plan
from promptprior.config.training import LIMIT_BOUNDS, SEED_BOUNDS, STEP_BOUNDS, Settings, setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class FitPlan:
    """The settings of `promptprior fit`."""

    method: str = setting("multitask", "method that learns the prior")
    sources: tuple[str, ...] = setting((), "source tasks: names, files or folders")
    seed: int = setting(13, "start and batches", **SEED_BOUNDS)
    data: Path | None = setting(None, DATA)
    partition: str | None = setting(None, "named partition that the sources come from unless they are given")
    partitions: Path | None = setting(None, "file of partitions; by default partitions.json of --data")
    shared: Shared = setting("refuse", "tasks of a partition that leak into its targets: refuse, drop or keep them")
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, "optimiser steps, the same as --source.steps", **STEP_BOUNDS)
    train_limit: int | None = setting(None, "at most this many training examples per source", **LIMIT_BOUNDS)
    tensorboard: Path | None = setting(None, TENSORBOARD)
    mlflow: str | None = setting(None, MLFLOW)
    output: Path = setting(Path("runs/prior"), "folder for the prior, and checkpoints while it is fitted")
    force: bool = setting(False, FORCE)
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.sources and not self.options.get("source_prompts"):
            raise SpecError("a prior is learned from source tasks: name some (--sources)")
        if len(set(self.sources)) < len(self.sources):
            raise SpecError(f"sources (--sources) names something twice: {', '.join(self.sources)}")

    def run(self, dry_run: bool) -> None:
        """Fit a prior and say where it is."""
        from promptprior.cli.common import cost_line, holds_own, warn_of_conflicts
        from promptprior.compare.progress import watch_steps
        from promptprior.cost_estimate import source_cost, text_tokens
        from promptprior.files import claimed
        from promptprior.fit import RunControl, check_fittable, fit
        from promptprior.methods import make_method
        from promptprior.methods.shared.source_prompts import learns_from_tasks, source_labels
        from promptprior.preflight import check_lengths, check_start
        from promptprior.tasks import load_task
        from promptprior.watch import step_logs

        inputs, prior, plan_file = (*self.sources, self.data), self.output / "prior", self.output / "plan.yaml"
        is_own = holds_own(prior, "prior")
        check_output(prior, "fit", inputs, force=self.force, is_own=is_own)
        is_own = is_own or is_plan_of(plan_file, "fit")
        check_output(plan_file, "fit", inputs, force=self.force, is_own=is_own)
        method, settings = make_method(self.method, self.options), self.settings
        if self.steps is not None:
            settings = replace(settings, source=replace(settings.source, steps=self.steps))
        watch = watch_steps(self.method, step_logs(self.tensorboard, self.mlflow, self.output))
        limits = {"train": self.train_limit} if self.train_limit is not None else None
        sources = [load_task(name, self.data, limits) for name in self.sources]  # type: ignore[arg-type]
        check_fittable(method, sources)
        backbone = load_backbone(self)
        check_start(backbone, settings)
        for source in sources:
            check_lengths(backbone, source, source.split("train"), settings.length)
        if dry_run and not learns_from_tasks(method):
            names = ", ".join(source_labels(method, sources))
            return print(f"fit {self.method}, seed {self.seed}, from the prompts {names}: nothing is trained")
        if dry_run:
            sizes = ", ".join(f"{source.name} ({len(source.split('train'))})" for source in sources)
            print(f"fit {self.method}, seed {self.seed}, {settings.source.steps} steps on {sizes}")
            cost = source_cost(method, text_tokens(backbone, sources), len(sources), settings)
            return print(cost_line(backbone, sources[0], settings.length, cost))
        warn_of_conflicts(sources)
        with claimed(self.output):
            fit(method, sources, backbone, settings, self.seed, RunControl(self.output, watch))
            save_plan(replace(self, settings=settings, steps=None), plan_file, "fit")
        return show(str(prior), {"prior": prior, "method": self.method, "sources": self.sources})


VERB = Verb(
    "fit",
    FitPlan,
    FitPlan.run,
    "promptprior fit --method multitask --sources noun_polarity,verb_polarity --steps 100 --output runs/prior",
    defaults=partial(tasks_of_partition, sides=("sources",)),
    is_parallel=True,
)
