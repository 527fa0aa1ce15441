"""Source tasks to a prior over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptprior.artifacts.artifact import Header, Prior, TaskCard, check_saveable, versions
from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.methods import Recipe, RunContext, check_recipe
from promptprior.methods.shared.source_prompts import learns_from_tasks
from promptprior.parameterisations.registry import plain_settings
from promptprior.preflight import check_lengths, check_start
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained, train
from promptprior.watch import WatchStage


@dataclass(frozen=True)
class RunControl:
    """Where a run keeps its checkpoints, how often (in seconds), and who watches its steps; without a folder it keeps
    none. `watch` is called with the name of each stage and returns what is called at each step, or None."""

    folder: Path | str | None = None
    watch: WatchStage | None = None
    checkpoint_seconds: float = 30.0

    def inside(self, name: str) -> "RunControl":
        """The same control with a folder inside this one."""
        return replace(self, folder=Path(self.folder) / name) if self.folder is not None else self


def fit(
    method: Recipe,
    sources: Sequence[Task],
    backbone: Backbone,
    settings: Settings | None = None,
    seed: int = 13,
    control: RunControl | None = None,
) -> Prior:
    """Learn a prior over prompts from source tasks.

    With a folder, checkpoints are kept in folder/checkpoints (a killed fit resumes to the same prior) and the prior is
    saved in folder/prior. Raises SpecError when the method learns nothing from sources or there are none.
    """
    check_fittable(method, sources)
    settings, control = settings or Settings(), control or RunControl()
    if method.needs_tokens:
        settings.require_tokens(f"method {method.name!r}")
    output = Path(control.folder) / "prior" if control.folder is not None else None
    if output is not None:
        check_saveable(output)
    check_start(backbone, settings)
    for source in sources:
        check_lengths(backbone, source, source.split("train"), settings.length)
    recipe = method.source_recipe()
    result = recipe.fit(make_run_context(backbone, source_settings(settings), control), sources, seed)
    form, cost = result.parameterisation, result.cost
    header = Header(
        kind="prior",
        method=method.name,
        settings={
            **to_mapping(settings),
            "method": to_mapping(method),
            "prior_of": recipe.name,
            "seed": seed,
            "dtype": str(backbone.frozen.dtype),
        },
        parameterisation=form.name,
        parameterisation_settings=plain_settings(form),
        backbone=backbone.card,
        tasks=tuple(TaskCard(t.name, t.version, t.fingerprint, "source") for t in sources),
        diagnostics={**result.diagnostics, "cost": {"rows": cost.rows, "tokens": cost.tokens}},
        versions=versions(),
    )
    prior = Prior(header, result.params)
    if output is not None:
        prior.save_pretrained(output)
    return prior


def check_fittable(method: Recipe, sources: Sequence[Task]) -> None:
    """Raise SpecError when the method is no recipe or learns nothing from sources, or there are none."""
    check_recipe(method)
    if not method.needs_sources:
        raise SpecError(f"method {method.name!r} has no prior to fit; use adapt")
    if not sources and learns_from_tasks(method):
        raise SpecError(f"method {method.name!r} learns from source tasks; name some (--sources)")


def source_settings(settings: Settings) -> Settings:
    """What the source stage sees, so that no prior depends on how targets are trained."""
    target = Training(eval_every=0)
    return replace(settings, target=target, folds=0, shots_are="class", dev_from="train", dev_limit=None)


def make_run_context(backbone: Backbone, settings: Settings, control: RunControl) -> RunContext:
    """A context whose runs are checkpointed under control.folder/checkpoints, by stage, and watched."""

    def train_stage(run: Run, stage: str) -> Trained:
        folder = Path(control.folder) / "checkpoints" / stage if control.folder is not None else None
        watch = control.watch(stage) if control.watch is not None else None
        return train(run, folder, watch, control.checkpoint_seconds)

    return RunContext(backbone, settings, train_stage)
