"""Settings of the papers' own runs, where they can be recovered: options of a method, and settings of both stages.

Learning rates of the papers are absolute; ours are in units of the backbone's embedding scale, so `scale` divides them.

- `maml`, `fomaml`, `reptile`: Qin et al. 2023, from their launch scripts: 100 tokens, Adafactor at 0.5. Source: 5,000
  updates. Target: 3,000 steps of batch 16 (8 on each of 2 GPUs), rates 0.5, 0.4, 0.3 and 0.2, dev evaluated every 50.
  Its prompts stood after the text and dropout was on; ours stand before it, without. Its inner rate, 3e-5, is left out
  on purpose: T5's prompts have entries of about 15, whose float32 spacing is 9.5e-7, so that gradients below 0.016 an
  entry move nothing; rules refuse it. What rate would have matched the paper's intent cannot be recovered: ours stands
  instead. Nor can its 32 + 32 examples of free-text tasks be had with one number of shots (ours: 16 + 16).
- `mpt`: Wang et al. 2023: 100 tokens, AdamW at 0.3 (0.4 for u and v), 5 epochs on the sources, 20 on a target (what the
  public code family has for small tasks), batch 32, sources drawn by their size capped at 2^18. Recalled, or from the
  code family, not from the paper itself: see docs/rivals.md.
- `dept`: Shi and Lipani 2024, the released script: AdamW at 0.3 and 0.4, 40,000 steps of 32, 500 warm-up; 40 tokens and
  rank 45 over 256 positions (DEPT_RANKS has the others); 5e-3 for the low-rank parts (they search 5e-3, 0.3 and 5e-4).
  It asks for a weight decay of 1e-5, but makes its own optimiser, which has none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError, unknown_name

DEPT_RANKS: Mapping[int, int] = {40: 45, 60: 30, 80: 15}  # of offsets, by tokens of the short prompt
META_UNITS: Mapping[str, Any] = {"shots": 16, "units_per_task": 5, "units_per_step": 2, "budget": "updates"}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "maml": {**META_UNITS, "inner_steps": 1, "support_size": 2, "query_size": 2},
    "fomaml": {**META_UNITS, "inner_steps": 1, "support_size": 4, "query_size": 4},
    "reptile": {**META_UNITS, "inner_steps": 10, "support_size": 4, "inner_optimiser": "sgd"},
    "mpt": {"strength": 0.9, "low_rank_speed": 0.4 / 0.3},  # times the embedding scale
    "dept": {"short": 40, "rank": DEPT_RANKS[40], "positions": 256, "low_rank_speed": 5e-3 / 0.3},
}


def published_options(name: str, scale: float = 1.0) -> dict[str, Any]:
    """The published options of a method on a backbone of this embedding scale. Raises SpecError for others."""
    if name not in OPTIONS:
        raise SpecError("no published settings: " + unknown_name("method", name, OPTIONS))
    options = dict(OPTIONS[name])
    if name == "mpt":
        options["low_rank_speed"] *= scale
    return options


def published_settings(name: str, scale: float, source_examples: int = 0, target_examples: int = 0) -> Settings:
    """The published settings of a method; those of mpt count epochs, and need the numbers of examples.

    Raises SpecError for a method without.
    """
    if name not in OPTIONS:
        raise SpecError("no published settings: " + unknown_name("method", name, OPTIONS))
    if name == "mpt":
        plain = Training(batch_size=32, learning_rates=(0.3 / scale,), warmup=500, weight_decay=1e-5)
        source = replace(plain, steps=-(-5 * source_examples // 32))
        target = replace(plain, steps=-(-20 * target_examples // 32), eval_every=500)
        return Settings(length=100, mixture="capped", source=source, target=target)
    if name == "dept":
        rates: tuple[float, ...] = (0.3 / scale, 0.4 / scale)
        target = Training(steps=40_000, batch_size=32, learning_rates=rates, warmup=500, eval_every=1000)
        return Settings(length=100, target=target)
    plain = Training(optimiser="adafactor", schedule="constant", weight_decay=1e-5)
    source = replace(plain, steps=5000, batch_size=4, learning_rates=(0.5 / scale,))
    rates = tuple(rate / scale for rate in (0.5, 0.4, 0.3, 0.2))
    target = replace(plain, steps=3000, batch_size=16, learning_rates=rates, eval_every=50)
    return Settings(length=100, source=source, target=target)
