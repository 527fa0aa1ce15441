"""What a comparison is: methods x targets x shots x seeds, and the key of every cell.

A cell's key is a hash of everything that decides its result, so a finished cell is never run again and a changed
setting never reuses one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptprior.config.choices import Shared
from promptprior.config.mapping import FlagText, from_mapping, stable_hash
from promptprior.config.training import Settings, Training, setting
from promptprior.errors import SpecError

if TYPE_CHECKING:  # help reads the plan's settings, and must not wait for torch
    from promptprior.backbone import Backbone
    from promptprior.methods import Method
    from promptprior.tasks import Task

RESULTS_VERSION = 1  # raised whenever a change of code changes results


QUANTIZE = "8bit or 4bit weights, by bitsandbytes; by default as they are stored"
COMPILE = "fuse the elementwise work of Llama-like and T5 blocks by torch.compile; see docs/performance.md"


@dataclass(frozen=True)
class Plan:
    """Everything `promptprior compare` is told. `steps` sets the steps of both stages unless they are named apart."""

    methods: tuple[str, ...] = setting(("zero_shot", "prompt_tuning", "multitask", "spot"), "methods to compare")
    sources: tuple[str, ...] = setting((), "source tasks: names, files or folders")
    targets: tuple[str, ...] = setting((), "target tasks: names, files or folders")
    shots: tuple[int, ...] = setting((16,), "examples per class to learn from, and as many again for dev")
    seeds: tuple[int, ...] = setting((13, 21, 42), "seeds: each its own draw of shots, start and batches")
    source_seed: int | None = setting(
        None,
        "one prior per method, fitted with this seed, for all seeds (the papers' protocol); by default one for each",
    )
    data: Path | None = setting(None, "folder of task folders that names are looked up in")
    partition: str | None = setting(None, "named partition that sources and targets come from unless they are given")
    partitions: Path | None = setting(None, "file of partitions; by default partitions.json of --data")
    shared: Shared = setting("refuse", "tasks of a partition that leak into the other side: refuse, drop or keep them")
    backbone: str = setting("smollm2", "Hub id, folder, .gguf file, or smollm2")
    dtype: str = setting("auto", "auto, float32, bfloat16, float16 or float64")
    device: str | None = setting(None, "cuda, cpu, …; by default the first GPU, else the CPU")
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, "optimiser steps of the source and the target stage")
    test_limit: int | None = setting(None, "at most this many test examples per target")
    train_limit: int | None = setting(None, "at most this many training examples per source")
    tensorboard: Path | None = setting(None, "folder for TensorBoard logs of every step (needs tensorboard)")
    output: Path = setting(Path("runs/compare"), "folder for results.jsonl, report.html, priors and prompts")
    together: int = setting(32, "at most this many cells of a method and seed adapt as copies of one run")
    retries: int = setting(1, "times that failed work is tried again before its cells count as failed")
    similarity: bool = setting(False, "also measure how like sources and targets are, for the report")
    engine: Literal["local", "ray"] = setting("local", "local: in this process; ray: on a Ray cluster")
    address: str | None = setting(None, "of the Ray cluster; by default one of this machine, started if there is none")
    ray_cpus: float = setting(1.0, "CPU cores, and threads, of each worker of --engine ray")
    ray_gpus: float = setting(0.0, "GPUs of each worker of --engine ray; 0.5 puts two workers on each")
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "options of single methods: --options.spot.retrieval weighted"}
    )

    def __post_init__(self) -> None:
        for name in ("methods", "targets", "shots", "seeds"):
            values = getattr(self, name)
            if not values:
                raise SpecError(f"{name} (--{name}) is empty: a comparison needs at least one")
            if len(set(values)) < len(values):
                raise SpecError(f"{name} (--{name}) names something twice: {', '.join(map(str, values))}")
        if min(self.shots) < 1:
            raise SpecError(f"shots (--shots) must be at least 1; got {min(self.shots)}")
        both = sorted(set(self.sources) & set(self.targets))
        if both:
            raise SpecError(f"{', '.join(both)} (--sources, --targets): a target cannot be among its own sources")
        if self.source_seed not in (None, *self.seeds):
            raise SpecError(f"source seed {self.source_seed} (--source-seed): expected one of --seeds {self.seeds}")
        self.check_engine()
        self.made_methods()

    def check_engine(self) -> None:
        """Raise SpecError for settings of work that nothing could run with."""
        if self.together < 1 or self.retries < 0:
            raise SpecError(
                f"together {self.together}, retries {self.retries} (--together, --retries): expected at least 1 and 0"
            )
        if self.ray_cpus <= 0 or self.ray_gpus < 0:
            raise SpecError(
                f"a worker with {self.ray_cpus:g} CPU and {self.ray_gpus:g} GPU (--ray-cpus, --ray-gpus): expected "
                "more than 0 and at least 0"
            )

    def made_methods(self) -> "list[Method]":
        """The methods with their options. Raises SpecError for unknown names, and for sources that are missing."""
        from promptprior.methods import make_method
        from promptprior.methods.shared.source_prompts import learns_from_tasks

        stray = sorted(set(self.options) - set(self.methods))
        if stray:
            raise SpecError(f"options for {', '.join(stray)} (--options.NAME): not among --methods")
        made = [make_method(name, self.options.get(name)) for name in self.methods]
        if not self.sources and (needy := [m.name for m in made if learns_from_tasks(m)]):
            raise SpecError(f"{', '.join(needy)} learn from source tasks: name some (--sources)")
        return made

    def prior_seed(self, seed: int) -> int:
        """The seed of the prior that episodes of a seed start from."""
        return seed if self.source_seed is None else self.source_seed

    def load_backbone(self, dtype: str | None = None, device: str | None = None) -> "Backbone":
        """The backbone that the plan names, in another dtype or on another device where one is given."""
        from promptprior.backbone import load

        chosen = (dtype or self.dtype, device or self.device)
        return load(self.backbone, *chosen, quantize=self.quantize, compile=self.compile)

    def resolved(self) -> Settings:
        """The settings with `steps` applied to both stages."""
        if self.steps is None:
            return self.settings
        return with_steps(self.settings, self.steps)


def with_steps(settings: Settings, steps: int) -> Settings:
    """The same settings with other numbers of steps; dev is asked about three times on the way."""

    def short(stage: Training) -> Training:
        every = max(1, steps // 3) if stage.eval_every else 0
        return replace(stage, steps=steps, eval_every=every)

    return replace(settings, source=short(settings.source), target=short(settings.target))


@dataclass(frozen=True)
class Cell:
    """One result to be: a method on a target with k shots of a seed; both 0 where a method uses no shots."""

    key: str
    method: "Method"
    target: "Task"
    k: int
    seed: int


@dataclass(frozen=True)
class Tasks:
    """The loaded tasks of a plan. `left_out` counts source examples dropped because a target holds the same text."""

    sources: "tuple[Task, ...]"
    targets: "tuple[Task, ...]"
    left_out: Mapping[str, int]


def separated(sources: "Sequence[Task]", targets: "Sequence[Task]") -> Tasks:
    """Sources without any example whose normalised text stands in a target.

    Raises SpecError for a task on both sides.
    """
    from promptprior.tasks.task import normalised

    same = {t.fingerprint for t in targets} & {s.fingerprint for s in sources}
    if same:
        names = sorted(s.name for s in sources if s.fingerprint in same)
        raise SpecError(f"{', '.join(names)} (--sources, --targets): the same task stands on both sides")
    seen = {normalised(e.text) for t in targets for split in t.examples.values() for e in split}
    cleaned, left_out = [], {}
    for source in sources:
        kept = {
            name: tuple(e for e in some if normalised(e.text) not in seen) for name, some in source.examples.items()
        }
        dropped = len(source.examples["train"]) - len(kept["train"])
        if dropped:
            left_out[source.name] = dropped
        cleaned.append(replace(source, examples=kept) if dropped else source)
    return Tasks(tuple(cleaned), tuple(targets), left_out)


def cells(plan: Plan, tasks: Tasks, backbone: "Backbone") -> list[Cell]:
    """All cells of a plan, seeds outermost, so that a half-done comparison is a fair one."""
    from promptprior.methods.shared.source_prompts import prior_origin

    out: dict[str, Cell] = {}
    made = [(method, prior_origin(method, tasks.sources)) for method in plan.made_methods()]
    for seed in plan.seeds:
        for method, origin in made:
            for k in plan.shots:
                for target in tasks.targets:
                    draw = (k, seed) if method.uses_shots else (0, 0)
                    cell = make_cell(plan, tasks, backbone, method, origin, target, *draw)
                    out.setdefault(cell.key, cell)
    return list(out.values())


def make_cell(
    plan: Plan,
    tasks: Tasks,
    backbone: "Backbone",
    method: "Method",
    origin: Sequence[str],
    target: "Task",
    k: int,
    seed: int,
) -> Cell:
    """A cell with the hash of all that decides its result; `origin` is what the method's prior is made from."""
    sources = [*origin]
    if method.needs_sources and plan.source_seed is not None:
        sources.append(f"fitted with seed {plan.source_seed}")
    parts = [
        RESULTS_VERSION,
        backbone.card.fingerprint,
        str(backbone.frozen.dtype),
        method,
        plan.resolved(),
        sources,
        target.fingerprint,
        plan.test_limit,
        k,
        seed,
    ]
    if plan.compile:
        parts.append("compiled")
    if method.trains_targets_jointly:
        parts.append([other.fingerprint for other in tasks.targets])
    return Cell(stable_hash(parts), method, target, k, seed)


def plan_from(mapping: Mapping[str, object], where: str) -> Plan:
    """A plan from a config file's mapping with flags laid over it. Raises SpecError for unknown keys."""
    return from_mapping(Plan, mapping, where)


__all__ = ["Cell", "FlagText", "Plan", "Tasks", "cells", "plan_from", "separated", "with_steps"]
