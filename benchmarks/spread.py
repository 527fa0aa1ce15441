"""How far particles spread under each kernel, beside where they began, the prior and an ensemble of independent runs.

    python benchmarks/spread.py --steps 20 --json results.json     # SmolLM2: about 10 s of one core a step and kernel
    python benchmarks/spread.py --backbone FOLDER --sources name,name

Each line is one fit of bmtpt on the same sources and batches, with the ensemble trained beside it. Spreads are standard
deviations of an entry across particles in embedding scales; `repulsion_first` and `_last` are norms of repulsion over
attraction, `mean_gap` is the source loss of the particles' mean less the mean of theirs (nats).
"""

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import finish, options

from promptprior.backbone import Backbone, load
from promptprior.config.training import Settings, Training
from promptprior.fit import fit
from promptprior.methods import make_method
from promptprior.tasks import Task, load_task

KERNELS: dict[str, dict[str, object]] = {
    "rbf": {"kernel": "rbf"},
    "per_token": {"kernel": "per_token"},
    "per_token, block 16": {"kernel": "per_token", "block": 16},
    "projected": {"kernel": "projected"},
    "gradient": {"kernel": "gradient"},
    "rbf, annealed from 100": {"kernel": "rbf", "first_repulsion": 100.0},
}


def measured(name: str, backbone: Backbone, sources: list[Task], steps: int) -> dict[str, Any]:
    """One line of the table."""
    stage = Training(steps=steps, batch_size=8, learning_rates=(0.3,))
    prior = fit(make_method("bmtpt", {**KERNELS[name], "ensemble": True}), sources, backbone, Settings(source=stage))
    found: Any = prior.header.diagnostics
    ratios = found["forces"]["repulsion_ratio"]
    return {
        "case": name,
        "repulsion_first": ratios[0],
        "repulsion_last": ratios[-1],
        **{f"spread_{of}": found["spread"][of] for of in ("start", "particles", "ensemble", "prior")},
        "particle_loss": mean(found["particle_loss"]),
        "mean_gap": found["mean_loss"] - mean(found["particle_loss"]),
    }


def main() -> None:
    """Fit once for each kernel."""
    parser = options(__doc__ or "")
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--sources", default="adjective_polarity,part_of_speech")
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    backbone = load(chosen.backbone, "auto")
    sources = [load_task(name) for name in chosen.sources.split(",")]
    finish([measured(name, backbone, sources, chosen.steps) for name in KERNELS], chosen.json)


if __name__ == "__main__":
    main()
