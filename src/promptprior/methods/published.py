"""Settings of the papers' own runs, where they can be recovered: options of a method, and settings of both stages.

Learning rates of the papers are absolute; ours are in units of the backbone's embedding scale, so `scale` divides them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError

META_UNITS: Mapping[str, Any] = {"shots": 16, "units_per_task": 5, "units_per_step": 2, "budget": "updates"}
META_SIZES: Mapping[str, Mapping[str, Any]] = {
    "maml": {"inner_steps": 1, "support_size": 2, "query_size": 2},
    "fomaml": {"inner_steps": 1, "support_size": 4, "query_size": 4},
    "reptile": {"inner_steps": 10, "support_size": 4, "inner_optimiser": "sgd"},
}
"""Sizes of Qin et al. 2023, from their launch scripts. Their inner rate, 3e-5 absolute, is left out on purpose: T5's
prompts have entries of about 15, whose float32 spacing is 9.5e-7, so that gradients below 0.016 an entry move nothing;
rules refuse it. What rate would have matched the paper's intent cannot be recovered: ours stands instead. Nor can its
32 + 32 examples of free-text tasks be had with one number of shots (ours: 16 + 16)."""


def meta_options(name: str) -> dict[str, Any]:
    """The published options of maml, fomaml or reptile. Raises SpecError for others, which the paper has not."""
    if name not in META_SIZES:
        raise SpecError(f"no published settings for {name!r}: the paper has {', '.join(META_SIZES)}")
    return {**META_UNITS, **META_SIZES[name]}


def meta_settings(scale: float) -> Settings:
    """Qin et al. 2023: 100 tokens, Adafactor at 0.5 absolute.

    Source: 5,000 updates. Target: 3,000 steps of batch 16 (8 on each of 2 GPUs), rates 0.5, 0.4, 0.3 and 0.2, dev
    evaluated every 50. Its prompts stood after the text and dropout was on; ours stand before it, without.
    """
    plain = Training(optimiser="adafactor", schedule="constant", weight_decay=1e-5)
    source = replace(plain, steps=5000, batch_size=4, learning_rates=(0.5 / scale,))
    rates = tuple(rate / scale for rate in (0.5, 0.4, 0.3, 0.2))
    target = replace(plain, steps=3000, batch_size=16, learning_rates=rates, eval_every=50)
    return Settings(length=100, source=source, target=target)


def mpt_options(scale: float) -> dict[str, Any]:
    """Wang et al. 2023: a rate of 0.4 for u and v where the shared prompt has 0.3."""
    return {"strength": 0.9, "low_rank_speed": 0.4 * scale / 0.3}


def mpt_settings(scale: float, source_examples: int, target_examples: int) -> Settings:
    """Wang et al. 2023, for so many examples: 100 tokens, AdamW at 0.3.

    5 epochs on the sources, 20 on a target (what the public code family has for small tasks), batch 32, sources drawn
    by their size capped at 2^18. Recalled, or from the code family, not from the paper itself: see docs/rivals.md.
    """
    plain = Training(batch_size=32, learning_rates=(0.3 / scale,), warmup=500, weight_decay=1e-5)
    source = replace(plain, steps=-(-5 * source_examples // 32))
    target = replace(plain, steps=-(-20 * target_examples // 32), eval_every=500)
    return Settings(length=100, mixture="capped", source=source, target=target)


def dept_options(short: int = 40, low_rank_rate: float = 5e-3) -> dict[str, Any]:
    """The released script of Shi and Lipani 2024: 40 tokens and rank 45 (elsewhere 60 and 30, 80 and 15).

    `low_rank_rate` is absolute like the prompt's 0.3; they search 5e-3, 0.3 and 5e-4. Raises SpecError for others.
    """
    ranks = {40: 45, 60: 30, 80: 15}
    if short not in ranks:
        raise SpecError(f"no published settings for a short prompt of {short} tokens: there are 40, 60 and 80")
    return {"short": short, "rank": ranks[short], "positions": 256, "low_rank_speed": low_rank_rate / 0.3}


def dept_settings(scale: float) -> Settings:
    """The released script of Shi and Lipani 2024: AdamW at 0.3 and 0.4, 40,000 steps of 32, 500 warm-up.

    The script asks for a weight decay of 1e-5, but makes its own optimiser, which has none.
    """
    rates = (0.3 / scale, 0.4 / scale)
    target = Training(steps=40_000, batch_size=32, learning_rates=rates, warmup=500, eval_every=1000)
    return Settings(length=100, target=target)
