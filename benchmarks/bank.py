"""What retrieval costs: one training step with a bank against one with a fresh prompt of the same length per row.

    python benchmarks/bank.py [--json FILE] [--trials N] [--threads N]

Both sides run the engine on the same rows; the bank adds queries, scores, top-k, the gather and its gradient, and
saves every prefix that two rows share. Bar: ratio at most 1.25.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import Step, alternate, finish, options
from workloads import Case as Workload
from workloads import backbone, made_batch

from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.retrieval.bank import Bank, Scoring, Selection
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Case:
    """A bank and the rows that read it."""

    workload: Workload
    size: int
    selection: Selection
    scoring: Scoring = "cosine"

    @property
    def name(self) -> str:
        return f"{self.workload.name}/N{self.size}/{self.selection}"


CASES = [
    Case(Workload("smollm2", "bfloat16", 20, 8, "even"), 60, "hard"),
    Case(Workload("smollm2", "bfloat16", 20, 8, "even"), 60, "straight_through"),
    Case(Workload("smollm2", "bfloat16", 100, 4, "even"), 600, "hard", "dot"),
]


@dataclass(frozen=True)
class PerRow:
    """One free prompt for every row of the batch."""

    length: int
    name: str = "per_row"

    def prompts(self, params: dict[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return params["prompt"][0], torch.arange(batch.texts)


def steps(case: Case) -> tuple[Step, Step]:
    """A step with the bank and a step with fresh prompts."""
    base, batch = backbone(case.workload.model, case.workload.dtype), made_batch(case.workload)
    length, generator = case.workload.length, torch.Generator().manual_seed(1)
    drawn = torch.randn(1, case.size + batch.texts * length, base.width, generator=generator) * base.scale
    bank, fresh = drawn[:, : case.size], drawn[:, case.size :].unflatten(1, (batch.texts, length))
    form = Bank(base, case.size, length, query="mean", scoring=case.scoring, selection=case.selection)
    retrieving, plain = PromptObjective(base, form), PromptObjective(base, PerRow(length))
    return (
        lambda: loss_and_gradient(retrieving, {"bank": bank}, batch),
        lambda: loss_and_gradient(plain, {"prompt": fresh}, batch),
    )


def measured(case: Case, trials: int) -> dict[str, Any]:
    """One line of the table."""
    bank, fresh = alternate(steps(case), trials)
    ratio = bank.median / fresh.median
    return {
        "case": case.name,
        "bank_s": bank.median,
        "fresh_s": fresh.median,
        "ratio": ratio,
        "bank_spread": bank.spread,
        "fresh_spread": fresh.spread,
    }


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__)
    parser.add_argument("--case", help="only cases whose name contains this")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    finish([measured(case, chosen.trials) for case in CASES if (chosen.case or "") in case.name], chosen.json)


if __name__ == "__main__":
    main()
