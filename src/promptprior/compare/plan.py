"""What a comparison is: methods x targets x shots x seeds, and the key of every cell.

A cell's key is a hash of everything that decides its result, so a finished cell is never run again and a changed
setting never reuses one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptprior.config.choices import Shared, TestRows
from promptprior.config.mapping import (
    apply_overrides,
    check_bounds,
    from_mapping,
    list_settings,
    settings_named,
    stable_hash,
    to_mapping,
)
from promptprior.config.training import LIMIT_BOUNDS, SEED_BOUNDS, SHOT_BOUNDS, STEP_BOUNDS, Settings, setting
from promptprior.errors import SpecError, unknown_name
from promptprior.interruptions import raise_if_interrupted

if TYPE_CHECKING:  # help reads the plan's settings, and must not wait for torch
    from promptprior.backbone import Backbone
    from promptprior.methods import Method
    from promptprior.tasks import Task
    from promptprior.tasks.task import Example

RESULTS_VERSION = 1  # raised whenever a change of code changes results

QUANTIZE = "8bit or 4bit weights, by bitsandbytes; by default as they are stored"
STEPS = "--target.steps; --target.eval-every, where it is a number above 0, becomes a third of them"
MOST_COMBINATIONS = 1000  # of swept values: a typing error must not become a year of work
COMPILE = "fuse the elementwise work of Llama-like and T5 blocks by torch.compile; see docs/performance.md"


@dataclass(frozen=True)
class Plan:
    """The settings of `promptprior compare`. `steps`, where given, sets the steps of both stages.

    Raises SpecError for an empty or repeated list, a target among its own sources, unknown methods, options and
    contrasts, and numbers out of their bounds.
    """

    methods: tuple[str, ...] = setting(("zero_shot", "prompt_tuning", "multitask", "spot"), "methods to compare")
    sources: tuple[str, ...] = setting((), "source tasks: names, files or folders")
    targets: tuple[str, ...] = setting((), "target tasks: names, files or folders")
    shots: tuple[int, ...] = setting(
        (16,), "examples per class to learn from, and as many again for dev", **SHOT_BOUNDS
    )
    seeds: tuple[int, ...] = setting(
        (13, 21, 42), "seeds: each its own draw of shots, start and batches", **SEED_BOUNDS
    )
    source_seed: int | None = setting(
        None,
        "one prior per method, fitted with this seed, for all seeds (the papers' protocol); by default one for each",
        **SEED_BOUNDS,
    )
    allow_missing: bool = setting(False, "go on without sources and targets that are not in the data folder")
    splits: Literal["given", "halved"] = setting(
        "given", "given, or halved: validation sets of small GLUE-like tasks as ATTEMPT's lineage halves them"
    )
    labels: Literal["words", "index"] = setting("words", "answers of classification: words, or index (0, 1, …)")
    metrics: Mapping[str, str] = field(
        default_factory=dict, metadata={"help": "metrics that score targets, where not their own first: {cb: accuracy}"}
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
    steps: int | None = setting(None, f"{STEPS}; the source stage has as many", **STEP_BOUNDS)
    test_limit: int | None = setting(None, "at most this many test examples per target", **LIMIT_BOUNDS)
    test_rows: TestRows = setting(
        "first", "rows of --test-limit: the first, or as many of each class (balanced)", omit_from_hash_if_default=True
    )
    train_limit: int | None = setting(None, "at most this many training examples per source", **LIMIT_BOUNDS)
    tensorboard: Path | None = setting(None, "folder for TensorBoard logs of every step (needs tensorboard)")
    mlflow: str | None = setting(None, "folder or URI for MLflow logs of every step (needs mlflow-skinny)")
    output: Path = setting(Path("runs/compare"), "folder for results.jsonl, report.html, priors and prompts")
    cells_per_run: int = setting(
        32,
        "at most this many cells of a method and seed adapt as copies of one run",
        formerly="together",
        least=1,
        most=10**6,
    )
    retries: int = setting(
        1, "times that failed work is tried again before its cells count as failed", least=0, most=1000
    )
    contrasts: tuple[str, ...] = setting(
        (),
        'pairs "a - b" of methods, written down first: the report tests and corrects just these',
        omit_from_hash_if_default=True,
    )
    sweep: Mapping[str, tuple[Any, ...]] = field(
        default_factory=dict,
        metadata={
            "help": "run once for each value: length=10,20, target.steps=30,60, options.NAME.KEY=A,B (give it again)",
            "omit_from_hash_if_default": True,
        },
    )
    published: str | None = setting(None, "the preset whose published rows the report shows beside the results")
    answers: int = setting(
        100,
        "test examples of each target whose texts and answers are kept for the report; 0: none",
        least=0,
        most=10**6,
    )
    similarity: bool = setting(False, "also measure how similar sources and targets are, for the report")
    engine: Literal["local", "processes", "ray"] = setting(
        "local", "local: in this process; processes: in several of this machine; ray: on a Ray cluster"
    )
    workers: int = setting(
        2, "processes of --engine processes; they share cores, memory and GPU of this machine", least=1, most=1024
    )
    address: str | None = setting(None, "of the Ray cluster; by default one of this machine, started if there is none")
    ray_cpus: float = setting(1.0, "CPU cores, and threads, of each worker of --engine ray", above=0, most=10**4)
    ray_gpus: float = setting(
        0.0, "GPUs of each worker of --engine ray; 0.5 puts two workers on each", least=0, most=10**4
    )
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, metadata={"help": "options of single methods: --options.spot.retrieval weighted"}
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("methods", "targets", "shots", "seeds"):
            values = getattr(self, name)
            if not values:
                raise SpecError(f"{name} (--{name}) is empty: a comparison needs at least one")
            if len(set(values)) < len(values):
                raise SpecError(f"{name} (--{name}) names something twice: {', '.join(map(str, values))}")
        on_both_sides = sorted(set(self.sources) & set(self.targets))
        if on_both_sides:
            names = ", ".join(on_both_sides)
            raise SpecError(f"{names} (--sources, --targets): a target cannot be among its own sources")
        if self.source_seed not in (None, *self.seeds):
            raise SpecError(f"source seed {self.source_seed} (--source-seed): expected one of --seeds {self.seeds}")
        self.make_methods()
        if self.contrasts:
            self.contrast_pairs()
        if self.sweep:
            self.combinations()

    def make_methods(self) -> "list[Method]":
        """The methods with their options. Raises SpecError for unknown names, for sources that are missing, for
        methods that have no form prefix where the settings say it, and for candidates of `auto` that need a prior."""
        from promptprior.methods import make_method
        from promptprior.methods.choosing import Choosing, candidates_of
        from promptprior.methods.shared.source_prompts import learns_from_tasks

        stray = sorted(set(self.options) - set(self.methods))
        if stray:
            raise SpecError(f"options for {', '.join(stray)} (--options.NAME): not among --methods")
        methods = [make_method(name, self.options.get(name), f"--options.{name}.") for name in self.methods]
        if not self.sources and (needy := [m.name for m in methods if learns_from_tasks(m)]):
            raise SpecError(f"{', '.join(needy)} learn from source tasks: name some (--sources)")
        for method in methods:
            if method.needs_tokens:
                self.settings.require_tokens(f"method {method.name!r}")
            if isinstance(method, Choosing):
                candidates_of(method)
        return methods

    def swept(self) -> dict[str, tuple[Any, ...]]:
        """The values of `sweep` by whole keys: target.steps, options.bmtpt.particles.

        Raises SpecError for keys that name no setting of all methods and no option of one, and for lists of no values.
        """
        known = [s for s in list_settings(Plan) if s.key.startswith("settings.")]
        swept: dict[str, tuple[Any, ...]] = {}
        for name, values in self.sweep.items():
            where, key = f"sweep {name!r} (--sweep KEY=VALUE,VALUE)", name.replace("-", "_")
            if not values:
                raise SpecError(f"{where}: expected one value or more")
            if not key.startswith("options."):
                meant = [s.key.removeprefix("settings.") for s in settings_named(name, known)]
                if not meant:
                    raise SpecError(f"{where}: {unknown_name('setting', key, [s.flag[2:] for s in known])}")
                if len(meant) > 1:
                    raise SpecError(f"{where} is ambiguous: say {' or '.join(meant)}")
                [key] = meant
            elif key.count(".") != 2:
                raise SpecError(f"{where}: expected options.METHOD.OPTION, as in options.bmtpt.particles=5,10")
            if key in swept:
                raise SpecError(f"{where} is given twice; give it once, values with commas")
            swept[key] = values
        return swept

    def combinations(self) -> "dict[str, Plan]":
        """A plan for each combination of swept values by its name, the last key changing fastest; {"": itself} without.

        Each is the plan that flags of these values would make. Raises SpecError for a wrong key or value, and for two
        combinations that come to the same.
        """
        if not self.sweep:
            return {"": self}
        swept = self.swept()
        if (count := prod(map(len, swept.values()))) > MOST_COMBINATIONS:
            raise SpecError(f"{count:,} combinations of values (--sweep): expected at most {MOST_COMBINATIONS:,}")
        base, plans, works = to_mapping(replace(self, sweep={})), dict[str, Plan](), dict[str, object]()
        for values in product(*swept.values()):
            # A value means what it would mean as a flag.
            texts = [value if isinstance(value, str) else json.dumps(to_mapping(value)) for value in values]
            name = ", ".join(f"{key} = {text}" for key, text in zip(swept, texts, strict=True))
            whole = [key if key.startswith("options.") else f"settings.{key}" for key in swept]
            flags = dict(zip(whole, texts, strict=True))
            plan = from_mapping(Plan, apply_overrides(base, flags), f"--sweep with {name}", flags="--")
            work = plan.resolved(), plan.make_methods()
            if same := next((earlier for earlier, other in works.items() if other == work), None):
                raise SpecError(
                    f"{same} and {name} come to the same (--sweep): leave one out; --steps, where given, wins over the "
                    "steps of both stages"
                )
            plans[name], works[name] = plan, work
        return plans

    def contrast_pairs(self) -> list[tuple[str, str]]:
        """The two methods of every contrast. Raises SpecError for another form, and for methods that do not run."""
        from promptprior.report.protocol.contrasts import contrast_pairs

        return contrast_pairs(self.contrasts, self.methods)

    def test_of(self, target: "Task") -> "tuple[Example, ...]":
        """The test examples of a target that its cells are scored on."""
        from promptprior.tasks.sampling.draws import select_test

        return select_test(target, self.test_limit, self.test_rows)

    def prior_seed(self, seed: int) -> int:
        """The seed of the prior that episodes of a seed start from."""
        return seed if self.source_seed is None else self.source_seed

    def resolved(self) -> Settings:
        """The settings with `steps` applied to both stages."""
        return self.settings if self.steps is None else with_steps(self.settings, self.steps)


def with_steps(settings: Settings, steps: int) -> Settings:
    """The same settings with another number of steps in both stages.

    Dev is asked about three times where `eval_every` is a number of steps; by default after each tenth of the new ones.
    """
    source, target = (
        replace(stage, steps=steps, eval_every=max(1, steps // 3) if stage.eval_every else stage.eval_every)
        for stage in (settings.source, settings.target)
    )
    return replace(settings, source=source, target=target)


def load_backbone(plan: Any, dtype: str | None = None, device: str | None = None) -> "Backbone":
    """The backbone that settings name in `backbone`, `dtype`, `device`, `quantize` and `compile`, loaded in silence.

    A `dtype` or `device` given here wins over theirs.
    """
    from promptprior.backbone import load
    from promptprior.backbone.quiet_loading import quiet_loading

    where = (dtype or plan.dtype, device or plan.device)
    with quiet_loading():
        backbone = load(plan.backbone, *where, quantize=plan.quantize, compile=plan.compile)
    raise_if_interrupted()
    length, context = getattr(getattr(plan, "settings", None), "length", 0), backbone.frozen.context
    if context is not None and length >= context:
        raise SpecError(
            f"prompt length {length} (--length): {plan.backbone} reads {context} tokens, the text among them"
        )
    return backbone


@dataclass(frozen=True)
class Tasks:
    """The loaded tasks of a plan. `left_out` counts source examples dropped because a target holds the same text.

    `missing` are the names of sources and targets that the plan does without (`allow_missing`).
    """

    sources: "tuple[Task, ...]"
    targets: "tuple[Task, ...]"
    left_out: Mapping[str, int]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One result to be: a method on a target with k shots of a seed; k and the seed are 0 where a method uses no
    shots."""

    key: str
    method: "Method"
    target: "Task"
    k: int
    seed: int


def unserved(plan: Plan, tasks: Tasks) -> list[str]:
    """Which methods cannot answer which targets, and why, a line each: a comparison leaves these cells out."""
    pairs = product(plan.make_methods(), tasks.targets)
    return [f"{m.name} on {t.name}: {reason}" for m, t in pairs if (reason := m.serves(t)) is not None]


def cells(plan: Plan, tasks: Tasks, backbone: "Backbone") -> list[Cell]:
    """All cells of a plan, seeds outermost, so that a half-done comparison is a fair one; without `unserved` ones."""
    from promptprior.methods.shared.source_prompts import prior_origin
    from promptprior.tasks.metrics import direction_mark

    cells_by_key: dict[str, Cell] = {}
    methods = [(method, prior_origin(method, tasks.sources)) for method in plan.make_methods()]
    grid = product(plan.seeds, methods, plan.shots, tasks.targets)
    for seed, (method, sources), k, target in grid:
        if method.serves(target) is not None:
            continue
        draw = (k, seed) if method.learns_from_shots else (0, 0)
        fitted_with = (
            [f"fitted with seed {plan.source_seed}"] if method.needs_sources and plan.source_seed is not None else []
        )
        # Everything that decides the result, and nothing else: what is added later may only be appended where it
        # differs from its default, or finished cells of older results would be run again.
        identity = [
            RESULTS_VERSION,
            backbone.card.fingerprint,
            str(backbone.frozen.dtype),
            method,
            plan.resolved(),
            [*sources, *fitted_with],
            target.fingerprint,
            plan.test_limit,
            *draw,
        ]
        identity += direction_mark(target)
        if not target.is_choice and target.max_gen_toks != type(target).max_gen_toks:
            identity.append(f"generates {target.max_gen_toks} tokens")
        if plan.compile:
            identity.append("compiled")
        if plan.test_rows != "first":
            identity.append(f"test rows {plan.test_rows}")
        if method.trains_targets_jointly:
            identity.append([other.fingerprint for other in tasks.targets])
        cell = Cell(stable_hash(identity), method, target, *draw)
        cells_by_key.setdefault(cell.key, cell)
    return list(cells_by_key.values())
