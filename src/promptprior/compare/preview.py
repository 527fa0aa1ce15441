"""What a comparison would run and cost, without running it."""

from collections.abc import Sequence

from promptprior.backbone import Backbone, load
from promptprior.compare.estimate import tokens_per_second
from promptprior.compare.plan import Cell, Plan, Tasks, cells
from promptprior.compare.progress import duration
from promptprior.compare.run import finished, grouped, load_tasks


def preview(plan: Plan, backbone: Backbone | None = None) -> str:
    """A page on the fits and cells that are missing, with estimated tokens and time."""
    tasks = load_tasks(plan)
    backbone = backbone or load(plan.backbone, plan.dtype, plan.device)
    wanted = cells(plan, tasks, backbone)
    done = finished(plan.output, wanted)
    missing = [cell for cell in wanted if cell.key not in done]
    lines = [
        f"{len(wanted)} cells: {len(done)} finished before, {len(missing)} to run",
        f"backbone {backbone.card.name} ({backbone.card.fingerprint}), {backbone.frozen.dtype}",
        "sources: " + (", ".join(f"{s.name} ({len(s.split('train'))})" for s in tasks.sources) or "none"),
        "targets: " + ", ".join(f"{t.name} ({len(t.split('test')[: plan.test_limit])} to test)" for t in tasks.targets),
    ]
    return "\n".join([*lines, *group_lines(plan, tasks, backbone, missing)])


def group_lines(plan: Plan, tasks: Tasks, backbone: Backbone, missing: Sequence[Cell]) -> list[str]:
    """A line for each method and seed, and the sum."""
    if not missing:
        return ["nothing to run; the report would be written again"]
    pace = tokens_per_second(backbone, tasks.targets[0], plan.resolved().length)
    lines, total = [], 0.0
    for group in grouped(plan, tasks, backbone, missing):
        total += group.fitting + group.adapting
        fit = f"fit {group.fitting:,.0f} tokens, " if group.fitting else ""
        label = f"{group.method.name}, seed {group.seed}" if group.seed else group.method.name
        lines.append(f"  {label}: {fit}adapt and test {len(group.cells)} cells {group.adapting:,.0f} tokens")
    return [*lines, f"about {total:,.0f} tokens, {duration(total / pace)} at {pace:,.0f} tokens a second"]
