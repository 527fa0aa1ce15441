"""promptprior fit: source tasks to a prior."""

from collections.abc import Mapping

from promptprior.cli.plan_file import save_plan
from promptprior.cli.plans import FitPlan
from promptprior.cli.verb import Verb


def run(plan: FitPlan, dry_run: bool) -> None:
    """Fit a prior and say where it is."""
    from promptprior.cli.common import cost_line, load_backbone, watcher, with_source_steps
    from promptprior.compare.cost_estimate import source_cost
    from promptprior.files import claimed
    from promptprior.fit import RunControl, check_fittable, fit
    from promptprior.methods import make_method
    from promptprior.tasks import load_task

    method, settings = make_method(plan.method, plan.options), with_source_steps(plan.settings, plan.steps)
    watch = watcher(plan.method, plan.tensorboard)
    limits = {"train": plan.train_limit} if plan.train_limit else None
    sources = [load_task(name, plan.data, limits) for name in plan.sources]  # type: ignore[arg-type]
    check_fittable(method, sources)
    backbone = load_backbone(plan)
    if dry_run:
        sizes = ", ".join(f"{source.name} ({len(source.split('train'))})" for source in sources)
        print(f"fit {plan.method}, seed {plan.seed}, {settings.source.steps} steps on {sizes}")
        cost = source_cost(backbone, sources, settings.source, settings.length)
        return print(cost_line(backbone, sources[0], settings.length, cost))
    with claimed(plan.output):
        fit(method, sources, backbone, settings, plan.seed, RunControl(plan.output, watch))
        save_plan(plan, plan.output / "plan.yaml")
    return print(plan.output / "prior")


def defaults(given: Mapping[str, object]) -> dict[str, object]:
    """Sources of the partition that is named."""
    if "partition" not in given:
        return dict(given)
    from promptprior.tasks.loading.partitions import from_partition

    return from_partition(given, ("sources",))


VERB = Verb(
    "fit",
    FitPlan,
    run,
    "promptprior fit --method multitask --sources noun_polarity,verb_polarity --steps 100 --output runs/prior",
    defaults=defaults,
    is_parallel=True,
)
