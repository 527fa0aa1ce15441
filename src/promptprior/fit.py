"""Sources to prior: `fit` runs a method's source stage and keeps what it taught."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from promptprior.artifacts.artifact import Header, Prior, TaskCard, check_saveable, versions
from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.methods import FitResult, Method, RunContext, source_stage
from promptprior.methods.shared.source_prompts import learns_from_tasks
from promptprior.parameterisations.registry import plain_settings
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained, train
from promptprior.watch import WatchStage


def fit(
    method: Method,
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    seed: int = 13,
    folder: Path | str | None = None,
    watch: WatchStage | None = None,
    checkpoint_seconds: float = 30.0,
) -> Prior:
    """Learn a prior over prompts from source tasks.

    With `folder`, checkpoints are kept in folder/checkpoints (a killed fit resumes to the same prior) and the prior is
    saved in folder/prior. Raises SpecError when the method learns nothing from sources or there are none.
    """
    check_fittable(method, sources)
    settings = settings or Settings()
    home = Path(folder) if folder is not None else None
    if home is not None:
        check_saveable(home / "prior")
    context = make_run_context(backbone, source_settings(settings), home, watch, checkpoint_seconds)
    fit_result = source_stage(method).fit(context, sources, seed)
    prior = Prior(prior_header(method, sources, backbone, settings, seed, fit_result), fit_result.params)
    if home is not None:
        prior.save_pretrained(home / "prior")
    return prior


def check_fittable(method: Method, sources: Sequence[Task]) -> None:
    """Raise SpecError when the method learns nothing from sources, or there are none."""
    if not method.needs_sources:
        raise SpecError(f"method {method.name!r} has no prior to fit; use adapt")
    if not sources and learns_from_tasks(method):
        raise SpecError(f"method {method.name!r} learns from source tasks; name some (--sources)")


def source_settings(settings: Settings) -> Settings:
    """What the source stage sees, so that no prior depends on how targets are trained."""
    return replace(settings, target=Training())


def make_run_context(
    backbone: Backbone, settings: Settings, home: Path | None, watch: WatchStage | None, checkpoint_seconds: float
) -> RunContext:
    """A lab whose runs are checkpointed under `home` and watched."""

    def run_stage(run: Run, stage: str) -> Trained:
        place = home / "checkpoints" / stage if home is not None else None
        return train(run, place, watch(stage) if watch is not None else None, checkpoint_seconds)

    return RunContext(backbone, settings, run_stage)


def prior_header(
    method: Method, sources: Sequence[Task], backbone: Backbone, settings: Settings, seed: int, fit_result: FitResult
) -> Header:
    """What a prior says about itself."""
    form = fit_result.parameterisation
    return Header(
        kind="prior",
        method=method.name,
        settings={
            **to_mapping(settings),
            "method": to_mapping(method),
            "prior_of": source_stage(method).name,
            "seed": seed,
            "dtype": str(backbone.frozen.dtype),
        },
        parameterisation=form.name,
        parameterisation_settings=plain_settings(form),
        backbone=backbone.card,
        tasks=tuple(TaskCard(t.name, t.version, t.fingerprint, "source") for t in sources),
        diagnostics={
            **fit_result.diagnostics,
            "cost": {"rows": fit_result.cost.rows, "tokens": fit_result.cost.tokens},
        },
        versions=versions(),
    )
