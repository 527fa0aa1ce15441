"""Settings of the verbs that work on one prior or prompt; compare has its own Plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.choices import Shared
from promptprior.config.training import Settings, setting
from promptprior.errors import SpecError

DATA = "folder of task folders that names are looked up in"
BACKBONE = "Hub id, folder, .gguf file, or smollm2"
DTYPE = "auto, float32, bfloat16, float16 or float64"
DEVICE = "cuda, cpu, …; by default the first GPU, else the CPU"
OPTIONS = {"help": "options of the method itself: --options.retrieval weighted"}


@dataclass(frozen=True)
class FitPlan:
    """Everything `promptprior fit` is told."""

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
    tensorboard: Path | None = setting(None, "folder for TensorBoard logs of every step (needs tensorboard)")
    output: Path = setting(Path("runs/prior"), "folder for the prior, and checkpoints while it is fitted")
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        if not self.sources:
            raise SpecError("a prior is learned from source tasks: name some (--sources)")


@dataclass(frozen=True)
class AdaptPlan:
    """Everything `promptprior adapt` is told. With a prior, method, backbone and settings are its own unless given."""

    method: str = setting("prompt_tuning", "method; a prior brings its own")
    prior: Path | None = setting(None, "folder that fit wrote; prompt_tuning and zero_shot need none")
    target: str = setting("", "target task: a name, file or folder")
    shots: int = setting(16, "examples per class to learn from, and as many again for dev")
    seed: int = setting(13, "draw of shots, start and batches")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, "optimiser steps, the same as --target.steps")
    test_limit: int | None = setting(None, "at most this many test examples")
    guard: bool = setting(False, "keep the prior only where dev shots prefer it to prompt_tuning and zero_shot")
    tensorboard: Path | None = setting(None, "folder for TensorBoard logs of every step (needs tensorboard)")
    output: Path = setting(Path("runs/prompt"), "folder for the prompt; a plain prompt's is a PEFT adapter")
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task to adapt to")
        if self.shots < 1:
            raise SpecError(f"shots (--shots) must be at least 1; got {self.shots}")


@dataclass(frozen=True)
class EvaluatePlan:
    """Everything `promptprior evaluate` is told. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    target: str = setting("", "task: a name, file or folder")
    split: Literal["train", "validation", "test"] = setting("test", "split to score on")
    limit: int | None = setting(None, "at most this many examples")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    abstention: bool = setting(False, "also accuracy on the most confident tenth of answers, two tenths, … all")
    json: bool = setting(False, "print one JSON object instead of a table")
    output: Path | None = setting(None, "write the JSON object to this file as well")

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task to score on")


@dataclass(frozen=True)
class PredictPlan:
    """Everything `promptprior predict` is told. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    input: Path = field(metadata={"help": "file of rows (.jsonl, .csv, .json, .parquet); they need no answers"})
    output: Path = field(metadata={"help": "file for the answers, a JSON object a line"})
    target: str = setting("", "task that says how rows are read: a spec file, a task folder or a name")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task that says how rows are read")
