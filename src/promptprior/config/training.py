"""Settings that all methods share: what the command line and config files set. Everything is in units a user can move
between backbones: learning rates in units of the embedding scale, weights of priors in examples."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, Unpack

from promptprior.config.choices import (
    AverageKind,
    DevFrom,
    OptimiserKind,
    RateKind,
    RateUnit,
    ScheduleKind,
    ShotsAre,
)
from promptprior.config.mapping import check_bounds
from promptprior.errors import SpecError


class Bounds(TypedDict, total=False):
    """What a setting's number must be, and every number of a list: see `config.mapping.bounds_problem`."""

    least: float
    above: float
    most: float
    at_least_one: bool


def setting(
    default: Any, text: str, *, omit_from_hash_if_default: bool = False, formerly: str = "", **bounds: Unpack[Bounds]
) -> Any:
    """A field with a default, the line that `--help` shows, and the bounds of its number.

    `omit_from_hash_if_default`: one that came later; at its default it is no part of hashes. `formerly`: the name it
    had when results were hashed first; files may still use it, and hashes always do (config.mapping).
    """
    metadata = {"help": text, "omit_from_hash_if_default": omit_from_hash_if_default, "formerly": formerly, **bounds}
    return field(default=default, metadata=metadata)


# Bounds of what several verbs set. The upper ones are far above all use: they stop a typing error before it costs
# memory.
SHOT_BOUNDS = Bounds(least=1, most=10**6)
SEED_BOUNDS = Bounds(least=0, most=2**63 - 1)
STEP_BOUNDS = Bounds(least=0, most=10**8)
LIMIT_BOUNDS = Bounds(least=1, most=10**9)

_HASHED_WITH_DECAY = {"hash_only": True, "omit_from_hash_if": lambda training: not training.weight_decay}


@dataclass(frozen=True)
class Training:
    """How one stage is trained: on the sources, or on the target's shots."""

    steps: int = setting(100, "optimiser steps", **STEP_BOUNDS)
    batch_size: int = setting(16, "texts per step (per episode on targets)", least=1, most=2**16)
    learning_rates: tuple[float, ...] = setting(
        (0.3,),
        "in units of --rate-unit; of several, dev picks the best for each episode",
        above=0,
        most=1e6,
        at_least_one=True,
    )
    rate_unit: RateUnit = setting(
        "scale",
        "what learning rates are in: scale (embedding scales), or absolute, as papers print them",
        omit_from_hash_if_default=True,
    )
    optimiser: OptimiserKind = setting("adamw", "adamw, adafactor or sgd")
    schedule: ScheduleKind = setting("linear", "constant, linear or cosine, to zero")
    warmup: int = setting(0, "steps over which the rate rises", **STEP_BOUNDS)
    weight_decay: float = setting(
        0.0, "decoupled weight decay, as AdamW has it: times the absolute learning rate", least=0, most=1e6
    )
    clip: float | None = setting(None, "largest gradient norm of a copy", above=0)
    eval_every: int | None = setting(
        None,
        "steps between evaluations on dev; 0: only before the first and after the last; null: a tenth of the steps",
        formerly="select_every",
        **STEP_BOUNDS,
    )
    eval_steps: tuple[int, ...] = setting(
        (),
        "further steps at which dev is asked: 1,2,5,10,20,50 draws a learning curve",
        formerly="looks",
        **STEP_BOUNDS,
    )
    patience: int | None = setting(None, "evaluations on dev without improvement before stopping", least=1, most=10**8)
    average: AverageKind = setting(
        "none",
        "what answers on targets: none (the last params), ema (decay 0.9 a step) or swa (the mean of the second half)",
        omit_from_hash_if_default=True,
    )
    # 1: decay times the absolute rate; before, times the rate in embedding scales. Only results with decay differ.
    decay_revision: int = field(default=1, init=False, repr=False, metadata=_HASHED_WITH_DECAY)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def dev_every(self) -> int:
        """`eval_every` in steps: by default a tenth of the steps, rounded up."""
        return max(1, -(-self.steps // 10)) if self.eval_every is None else self.eval_every


@dataclass(frozen=True)
class Settings:
    """What every method is given: the prompt, and how sources and targets are trained on.

    The defaults are ours, found on SmolLM2-135M (docs/log.md); published settings are presets of their methods.
    """

    length: int = setting(20, "prompt length in tokens", least=1, most=2**16)
    start: Literal["vocabulary", "text", "labels", "noise"] = setting(
        "vocabulary", "what prompts start from: vocabulary, text, labels or noise"
    )
    start_text: str = setting("", "the text of --start text")
    form: Literal["prompt", "prefix"] = setting(
        "prompt",
        "what a free prompt is: prompt (embeddings) or prefix (keys and values of every layer)",
        omit_from_hash_if_default=True,
    )
    layers: tuple[int, ...] = setting(
        (),
        "of form prefix: the layers that have one, from 0; by default all",
        omit_from_hash_if_default=True,
        least=0,
        most=10**4,
    )
    mixture: RateKind = setting("uniform", "how often each source is drawn")
    mixture_cap: int = setting(2**18, "size above which a source counts no more (mixture capped)", **LIMIT_BOUNDS)
    mixture_temperature: float = setting(2.0, "flattening of sizes (mixture temperature)", least=0.01, most=1e6)
    source: Training = field(default_factory=lambda: Training(steps=200, batch_size=16, eval_every=0))
    target: Training = field(default_factory=lambda: Training(steps=60, batch_size=8))
    dev_limit: int | None = setting(
        None,
        "at most this many dev examples per target (by default as many as shots)",
        omit_from_hash_if_default=True,
        **LIMIT_BOUNDS,
    )
    shots_are: ShotsAre = setting(
        "class",
        "what a number of shots counts: class (examples of each class) or total (of all classes together)",
        omit_from_hash_if_default=True,
    )
    dev_from: DevFrom = setting(
        "train",
        "where dev examples come from: train (as many as shots) or validation (all of it, or --dev-limit)",
        omit_from_hash_if_default=True,
    )
    folds: int = setting(
        0,
        "0: dev shots choose, train shots teach; 1: then all shots teach again; more: so many folds of them choose",
        omit_from_hash_if_default=True,
        least=0,
        most=1000,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.source.eval_every is None:  # sources have no dev: one way to say so, for keys of priors are hashes
            object.__setattr__(self, "source", replace(self.source, eval_every=0))
        if self.source.average != "none":
            raise SpecError(
                f"source average {self.source.average} (--source.average): expected none; averages answer on targets"
            )
        if len(self.source.learning_rates) > 1:
            raise SpecError(
                f"source learning rates {self.source.learning_rates} (--source.learning-rates): expected one, since "
                "sources have no dev examples to choose by; of several target rates dev picks the best "
                "(--target.learning-rates)"
            )

    def require_tokens(self, what: str) -> None:
        """Raise SpecError where free prompts are prefixes, for what needs their embeddings."""
        if self.form == "prefix":
            raise SpecError(
                f"form prefix (--form): {what} reads or mixes the embeddings of prompts, and a prefix has none; use "
                "--form prompt"
            )
