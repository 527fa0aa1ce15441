"""promptprior fit: source tasks to a prior."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from promptprior.cli.output import save_plan
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, OPTIONS, TENSORBOARD, Verb, tasks_of_partition
from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.choices import Shared
from promptprior.config.training import Settings, setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class FitPlan:
    """The settings of `promptprior fit`."""

    method: str = setting("multitask", "method that learns the prior")
    sources: tuple[str, ...] = setting((), "source tasks: names, files or folders")
    seed: int = setting(13, "start and batches")
    data: Path | None = setting(None, DATA)
    partition: str | None = setting(None, "named partition that the sources come from unless they are given")
    partitions: Path | None = setting(None, "file of partitions; by default partitions.json of --data")
    shared: Shared = setting("refuse", "tasks of a partition that leak into its targets: refuse, drop or keep them")
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, "optimiser steps, the same as --source.steps")
    train_limit: int | None = setting(None, "at most this many training examples per source")
    tensorboard: Path | None = setting(None, TENSORBOARD)
    output: Path = setting(Path("runs/prior"), "folder for the prior, and checkpoints while it is fitted")
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        if not self.sources:
            raise SpecError("a prior is learned from source tasks: name some (--sources)")

    def run(self, dry_run: bool) -> None:
        """Fit a prior and say where it is."""
        from promptprior.cli.common import cost_line, load_backbone, watcher
        from promptprior.compare.cost_estimate import source_cost
        from promptprior.files import claimed
        from promptprior.fit import RunControl, check_fittable, fit
        from promptprior.methods import make_method
        from promptprior.tasks import load_task

        method, settings = make_method(self.method, self.options), self.settings
        if self.steps is not None:
            settings = replace(settings, source=replace(settings.source, steps=self.steps))
        watch = watcher(self.method, self.tensorboard)
        limits = {"train": self.train_limit} if self.train_limit else None
        sources = [load_task(name, self.data, limits) for name in self.sources]  # type: ignore[arg-type]
        check_fittable(method, sources)
        backbone = load_backbone(self)
        if dry_run:
            sizes = ", ".join(f"{source.name} ({len(source.split('train'))})" for source in sources)
            print(f"fit {self.method}, seed {self.seed}, {settings.source.steps} steps on {sizes}")
            cost = source_cost(backbone, sources, settings.source, settings.length)
            return print(cost_line(backbone, sources[0], settings.length, cost))
        with claimed(self.output):
            fit(method, sources, backbone, settings, self.seed, RunControl(self.output, watch))
            save_plan(self, self.output / "plan.yaml")
        return print(self.output / "prior")


VERB = Verb(
    "fit",
    FitPlan,
    FitPlan.run,
    "promptprior fit --method multitask --sources noun_polarity,verb_polarity --steps 100 --output runs/prior",
    defaults=partial(tasks_of_partition, sides=("sources",)),
    is_parallel=True,
)
