"""Peak memory of one training step, each in a fresh process: ours, ours with recomputation, and PEFT.

    python benchmarks/memory.py [--dtype float32] [--json FILE]

`*_mb` is what the step adds to the resident memory of a process that holds the model.
"""

from dataclasses import replace
from typing import Any

from engine import ours, peft, start_prompt
from measure import finish, options, peak_bytes, report_peak
from workloads import Case, backbone, made_batch

from promptprior.backbone.forward.dispatch import chosen_route

SIDES = ("ours", "recompute", "peft")


def measured(case: Case) -> dict[str, Any]:
    """One line."""
    seen = {side: peak_bytes(__file__, ["--case", case.name, "--peak", side]) for side in SIDES}
    row: dict[str, Any] = {"case": case.name}
    row |= {f"{side}_mb": (peak - before) / 2**20 for side, (peak, before) in seen.items()}
    row |= {f"{side}_process_mb": peak / 2**20 for side, (peak, _) in seen.items()}
    return row


def one_side(case: Case, side: str) -> None:
    """Run one side's step and print its peak."""
    prompt, batch = start_prompt(case), made_batch(case)
    base = backbone(case.model, case.dtype)
    if side == "peft":
        report_peak(peft(case, prompt.detach(), batch)[0])
    elif side == "ours":
        report_peak(ours(case, prompt, batch))
    else:
        lean = replace(base, states=chosen_route(base.frozen, recompute=True, check=False))
        report_peak(lambda: lean.losses(prompt[None], batch).sum().backward())


def main() -> None:
    """Measure all cases."""
    parser = options(__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--case", help="one case: model/dtype/L<prompt>/R<rows>/even")
    parser.add_argument("--peak", choices=SIDES, help="(internal) print one side's peak memory")
    chosen = parser.parse_args()
    if chosen.peak:
        one_side(Case.parse(chosen.case), chosen.peak)
        return
    cases = [Case("smollm2", chosen.dtype, length, rows, "even") for length in (20, 100) for rows in (8, 32)]
    cases = [Case.parse(chosen.case)] if chosen.case else [*cases, Case("t5small", chosen.dtype, 100, 32, "even")]
    finish([measured(case) for case in cases], chosen.json)


if __name__ == "__main__":
    main()
