"""Plans one after the other at low priority, as a machine does overnight: one that fails stops no other."""

import os
from collections.abc import Mapping

from promptprior.backbone import Backbone
from promptprior.compare.plan import Plan, load_backbone
from promptprior.compare.progress import ProgressDisplay, Say, report_failure, say_to_stderr
from promptprior.compare.run import load_plan, preview, run_plan, total_tokens, work_left
from promptprior.errors import PromptpriorError, SpecError
from promptprior.interruptions import raise_if_interrupted

FAILURES = (PromptpriorError, OSError, MemoryError, RuntimeError)  # of a plan; other errors are ours


def run_queue(plans: Mapping[str, Plan], dry_run: bool = False, say: Say = say_to_stderr, command: str = "") -> bool:
    """Run plans by their names; whether all of their cells have results. With `dry_run` print what would run.

    All plans are looked through first: what is wrong with one is said at once, what is finished is left as it is, and
    the rest tells how long everything takes. Interrupted, it resumes like `run_plan`. Raises SpecError where two plans
    write to one folder.
    """
    folders = {name: plan.output.resolve() for name, plan in plans.items()}
    for name, folder in folders.items():
        if same := [other for other in folders if other != name and folders[other] == folder]:
            raise SpecError(f"{name} and {same[0]} both write to {plans[name].output}: give each its own (output)")
    if hasattr(os, "nice"):
        os.nice(19)  # whoever works at this machine goes first

    loaded: dict[tuple[object, ...], Backbone] = {}  # the last one only: memory is for one

    def backbone_of(plan: Plan) -> Backbone:
        key = (plan.backbone, plan.dtype, plan.device, plan.quantize, plan.compile)
        if key not in loaded:
            loaded.clear()
            loaded[key] = load_backbone(plan)
        return loaded[key]

    failed, left = list[str](), dict[str, float]()  # names of plans; tokens of those that have work
    for name, plan in plans.items():
        try:
            if dry_run:
                print(name, preview(plan, backbone_of(plan)), "", sep="\n")
                continue
            left[name] = total_tokens(work_left(load_plan(plan, backbone_of(plan))))
        except FAILURES as error:
            raise_if_interrupted()
            failed.append(name)
            report_failure(say, f"{name}: cannot run: {error}")
    progress = ProgressDisplay(say, sum(left.values()))
    for place, (name, tokens) in enumerate(left.items(), start=1):
        if not tokens:
            say(f"plan {place} of {len(left)}, {name}: finished before")
            continue
        say(f"plan {place} of {len(left)}, {name}: results in {plans[name].output}")
        progress.later, progress.within = sum(list(left.values())[place:]), 0.0
        try:
            outcome = run_plan(plans[name], backbone_of(plans[name]), say, command, progress)
            if outcome.errors:
                failed.append(name)
        except FAILURES as error:
            raise_if_interrupted()
            failed.append(name)
            report_failure(say, f"{name}: stopped: {error}")
    if failed:
        names = ", ".join(failed)
        report_failure(say, f"{len(failed)} of {len(plans)} plans failed ({names}); the same command tries them again")
    return not failed
