"""Settings that all methods share: what the command line and config files set. Everything is in units a user can move
between backbones: learning rates in units of the embedding scale, weights of priors in examples."""

from dataclasses import dataclass, field
from typing import Any, Literal

from promptprior.config.choices import OptimiserKind, RateKind, ScheduleKind
from promptprior.errors import SpecError


def setting(default: Any, text: str, omit_from_hash_if_default: bool = False, formerly: str = "") -> Any:
    """A field with a default and the line that `--help` shows.

    `omit_from_hash_if_default`: one that came later; at its default it is no part of hashes. `formerly`: the name it
    had when results were hashed first; files may still use it, and hashes always do (config.mapping).
    """
    metadata = {"help": text, "omit_from_hash_if_default": omit_from_hash_if_default, "formerly": formerly}
    return field(default=default, metadata=metadata)


_HASHED_WITH_DECAY = {"hash_only": True, "omit_from_hash_if": lambda training: not training.weight_decay}


@dataclass(frozen=True)
class Training:
    """How one stage is trained: on the sources, or on the target's shots."""

    steps: int = setting(100, "optimiser steps")
    batch_size: int = setting(16, "texts per step (per episode on targets)")
    learning_rates: tuple[float, ...] = setting(
        (0.3,), "in units of the embedding scale; of several, dev picks the best for each episode"
    )
    optimiser: OptimiserKind = setting("adamw", "adamw, adafactor or sgd")
    schedule: ScheduleKind = setting("linear", "constant, linear or cosine, to zero")
    warmup: int = setting(0, "steps over which the rate rises")
    weight_decay: float = setting(0.0, "decoupled weight decay, as AdamW has it: times the absolute learning rate")
    clip: float | None = setting(None, "largest gradient norm of a copy")
    eval_every: int = setting(
        0, "steps between evaluations on dev; 0: only before the first and after the last", formerly="select_every"
    )
    eval_steps: tuple[int, ...] = setting(
        (), "further steps at which dev is asked: 1,2,5,10,20,50 draws a learning curve", formerly="looks"
    )
    patience: int | None = setting(None, "evaluations on dev without improvement before stopping")
    # 1: decay times the absolute rate; before, times the rate in embedding scales. Only results with decay differ.
    decay_revision: int = field(default=1, init=False, repr=False, metadata=_HASHED_WITH_DECAY)

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise SpecError(
                f"steps {self.steps}, batch size {self.batch_size} (--steps, --batch-size): expected at least 0 and 1"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise SpecError(f"learning rates {self.learning_rates} (--learning-rates): expected positive numbers")
        if self.warmup < 0 or self.eval_every < 0:
            raise SpecError(
                f"warmup {self.warmup}, eval every {self.eval_every} (--warmup, --eval-every): expected 0 or more"
            )
        if self.patience is not None and self.patience < 1:
            raise SpecError(f"patience {self.patience} (--patience): expected at least 1, or nothing to never stop")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip {self.clip} (--clip): expected a positive gradient norm, or nothing for none")


@dataclass(frozen=True)
class Settings:
    """What every method is given: the prompt, and how sources and targets are trained on.

    The defaults are ours, found on SmolLM2-135M (docs/log.md); published settings are presets of their methods.
    """

    length: int = setting(20, "prompt length in tokens")
    start: Literal["vocabulary", "text", "labels", "noise"] = setting(
        "vocabulary", "what prompts start from: vocabulary, text, labels or noise"
    )
    start_text: str = setting("", "the text of --start text")
    mixture: RateKind = setting("uniform", "how often each source is drawn")
    mixture_cap: int = setting(2**18, "size above which a source counts no more (mixture capped)")
    mixture_temperature: float = setting(2.0, "flattening of sizes (mixture temperature)")
    source: Training = field(default_factory=lambda: Training(steps=200, batch_size=16))
    target: Training = field(default_factory=lambda: Training(steps=60, batch_size=8, eval_every=20))
    dev_limit: int | None = setting(
        None, "at most this many dev examples per target (by default as many as shots)", omit_from_hash_if_default=True
    )

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SpecError(f"prompt length {self.length} (--length): expected at least 1")
        if self.dev_limit is not None and self.dev_limit < 1:
            raise SpecError(f"dev limit {self.dev_limit} (--dev-limit): expected at least 1, or nothing for none")
        if len(self.source.learning_rates) > 1:
            raise SpecError(
                f"source learning rates {self.source.learning_rates} (--source.learning-rates): expected one, since "
                "sources have no dev examples to choose by; of several target rates dev picks the best "
                "(--target.learning-rates)"
            )
