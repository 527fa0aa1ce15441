"""Cost of a step as prompt length, rows, prompts and choices grow, beside the token count that should explain it.

    python benchmarks/scaling.py [--dtype float32] [--json FILE]

The model: a causal step computes P L + sum of text lengths + sum of (answer length - 1) tokens; concatenation computes
R (L + T + U - 1), padded.
"""

from dataclasses import replace
from typing import Any

import torch
from measure import alternate, finish, options
from workloads import backbone, even_tokens

from promptprior.backbone.kernels.packing import plan
from promptprior.tasks.sampling.batch import Batch, collate

BASE = {"L": 20, "R": 16, "P": 1, "C": 1}
GROWN = [{}, {"L": 100}, {"L": 200}, {"R": 8}, {"R": 64}, {"P": 4}, {"P": 16}, {"C": 2}, {"C": 5}]
SIZE, ANSWER = 32, 3


def made(sizes: dict[str, int]) -> Batch:
    """R texts that read P prompts, each with C answers."""
    texts = sizes["R"]
    items = even_tokens(texts, SIZE, sizes["C"], ANSWER)
    return collate(items, copies=[x * sizes["P"] // texts for x in range(texts)])


def measured(dtype: str, sizes: dict[str, int], trials: int) -> dict[str, Any]:
    """One line."""
    base, batch = replace(backbone("smollm2", dtype), max_tokens=10**9), made(sizes)
    prompts = (torch.randn(sizes["P"], sizes["L"], base.width) * base.scale).requires_grad_()
    (timing,) = alternate([lambda: base.losses(prompts, batch).sum().backward()], trials)
    tokens = len(plan(batch, sizes["L"]).position_ids)
    return {
        "case": "/".join(f"{name}{size}" for name, size in sizes.items()),
        "step_s": timing.median,
        "tokens": tokens,
        "concatenated_tokens": batch.rows * (sizes["L"] + SIZE + ANSWER - 1),
        "tokens_per_s": tokens / timing.median,
        "spread": timing.spread,
    }


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    finish([measured(chosen.dtype, BASE | grown, chosen.trials) for grown in GROWN], chosen.json)


if __name__ == "__main__":
    main()
