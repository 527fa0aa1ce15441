"""Sources to prior: `fit` runs a method's source stage and keeps what it taught."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from promptprior.backbone import Backbone
from promptprior.config import to_mapping
from promptprior.errors import SpecError
from promptprior.methods import Lab, Learned, Method, source_stage
from promptprior.methods.source_prompts import learns_from_tasks
from promptprior.prompts.artifact import Header, Prior, TaskCard, check_saveable, versions
from promptprior.prompts.parameterisation import plain_settings
from promptprior.settings import Settings, Training
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
    lab = make_lab(backbone, source_settings(settings), home, watch, checkpoint_seconds)
    learned = source_stage(method).learn(lab, sources, seed)
    prior = Prior(prior_header(method, sources, backbone, settings, seed, learned), learned.params)
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


def make_lab(
    backbone: Backbone, settings: Settings, home: Path | None, watch: WatchStage | None, checkpoint_seconds: float
) -> Lab:
    """A lab whose runs are checkpointed under `home` and watched."""

    def run_stage(run: Run, stage: str) -> Trained:
        place = home / "checkpoints" / stage if home is not None else None
        return train(run, place, watch(stage) if watch is not None else None, checkpoint_seconds)

    return Lab(backbone, settings, run_stage)


def prior_header(
    method: Method, sources: Sequence[Task], backbone: Backbone, settings: Settings, seed: int, learned: Learned
) -> Header:
    """What a prior says about itself."""
    form = learned.parameterisation
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
        diagnostics={**learned.diagnostics, "cost": {"rows": learned.rows, "tokens": learned.tokens}},
        versions=versions(),
    )
