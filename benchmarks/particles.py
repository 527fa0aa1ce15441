"""What M particles cost: one call of the engine for all against M calls, and the kernel's share of a training step.

    python benchmarks/particles.py [--json FILE] [--trials N] [--threads N]

Particles read the same rows, as they do in bmtpt; `single_s` is the gradient of one prompt on them. `ratio` is five
in one call over five times that, `kernel_share` the Stein direction's part of the step. Bars: 1.15 and 0.02. About
3 minutes on one core.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import alternate, finish, options
from workloads import Case, backbone, made_batch

from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.direct import Direct
from promptprior.rules.stein_kernels import KernelKind, make_kernel

PARTICLES = 5
CASES = [Case("smollm2", "bfloat16", length, rows, "even") for length, rows in ((20, 8), (100, 8))]
KERNELS: tuple[KernelKind, ...] = ("rbf", "per_token", "projected", "gradient")


def measured(case: Case, trials: int) -> list[dict[str, Any]]:
    """One line for each kernel; the engine is timed once."""
    base, batch = backbone(case.model, case.dtype), made_batch(case)
    objective = PromptObjective(base, Direct(case.length, base.width))
    drawn = torch.randn(PARTICLES, case.length, base.width, generator=torch.Generator().manual_seed(0)) * base.scale
    many, one = {"prompt": drawn}, {"prompt": drawn[:1]}
    tiled = batch.tile(PARTICLES)
    steps = [
        lambda: loss_and_gradient(objective, many, tiled),
        lambda: loss_and_gradient(objective, one, batch),
        *(lambda kind=kind: make_kernel(kind).stein(many, many) for kind in KERNELS),
    ]
    five, single, *kernels = alternate(steps, trials)
    return [
        {
            "case": f"{case.name}/M{PARTICLES}/{kind}",
            "five_s": five.median,
            "single_s": single.median,
            "ratio": five.median / (PARTICLES * single.median),
            "kernel_s": kernel.median,
            "kernel_share": kernel.median / five.median,
        }
        for kind, kernel in zip(KERNELS, kernels, strict=True)
    ]


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__ or "")
    parser.add_argument("--case", help="only cases whose name contains this")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = [row for case in CASES if (chosen.case or "") in case.name for row in measured(case, chosen.trials)]
    finish(rows, chosen.json)


if __name__ == "__main__":
    main()
