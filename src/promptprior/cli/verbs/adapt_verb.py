"""promptprior adapt: a prior and a few examples of a target to a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from promptprior.cli.output import plan_beside, save_plan, score_lines
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, OPTIONS, TENSORBOARD, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE, with_steps
from promptprior.config.mapping import from_mapping, merge_settings, to_mapping
from promptprior.config.training import Settings, setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class AdaptPlan:
    """The settings of `promptprior adapt`. With a prior, method, backbone and settings are its own unless given."""

    method: str = setting("prompt_tuning", "method; a prior brings its own")
    prior: Path | None = setting(None, "folder that fit wrote; prompt_tuning and zero_shot need none")
    target: str = setting("", "target task: a name, file or folder")
    shots: int = setting(16, "examples per class to learn from, and as many again for dev")
    seed: int = setting(13, "draw of shots, start and batches")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, "optimiser steps, the same as --target.steps")
    test_limit: int | None = setting(None, "at most this many test examples")
    guard: bool = setting(False, "keep the prior only where dev shots prefer it to prompt_tuning and zero_shot")
    tensorboard: Path | None = setting(None, TENSORBOARD)
    output: Path = setting(Path("runs/prompt"), "folder for the prompt; a plain prompt's is a PEFT adapter")
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task to adapt to")
        if self.shots < 1:
            raise SpecError(f"shots (--shots) must be at least 1; got {self.shots}")

    def run(self, dry_run: bool) -> None:
        """Adapt to one episode with checkpoints beside the output, test the prompt, save it with its plan."""
        import shutil

        from promptprior.adapt import adapt, diagnose, make_episode, score_on_test
        from promptprior.artifacts.artifact import Prior, check_saveable
        from promptprior.cli.common import artifact_folder, cost_line, load_backbone, watcher
        from promptprior.compare.cost_estimate import adapting_cost, target_size
        from promptprior.files import claimed
        from promptprior.fit import RunControl
        from promptprior.guard import guarded
        from promptprior.methods import make_method
        from promptprior.tasks import load_task

        method = make_method(self.method, self.options)
        settings = self.settings if self.steps is None else with_steps(self.settings, self.steps)
        task = load_task(self.target, self.data)
        episode = make_episode(task, self.shots, self.seed, settings.dev_limit)
        check_saveable(self.output)
        backbone = load_backbone(self)
        prior = None if self.prior is None else Prior.from_pretrained(artifact_folder(self.prior), backbone.card)
        tested = len(task.split("test")[: self.test_limit])
        if dry_run:
            size = target_size(backbone, task)
            cost = adapting_cost(method, size, self.shots, settings, tested)
            if self.guard:
                cost += adapting_cost(make_method("prompt_tuning"), size, self.shots, settings, 0)
            shots = f"{len(episode.shots.train)} examples, {len(episode.shots.dev)} for dev"
            print(f"adapt {method.name} to {task.name}: {shots}, {settings.target.steps} steps, {tested} to test")
            return print(cost_line(backbone, task, settings.length, cost))

        work = self.output.with_name(self.output.name + ".work")
        control = RunControl(work, watcher(method.name, self.tensorboard))
        inputs = (method, [episode], backbone, prior, settings, control)
        with claimed(work, self.output, plan_beside(self.output)):
            verdicts = guarded(*inputs) if self.guard else []
            done = [verdict.adapted for verdict in verdicts] or adapt(*inputs)
            results, adapted = score_on_test(backbone, done, self.test_limit)[0], done[0]
            header, scores = adapted.prompt.header, {"test": dict(results.scores), "test_examples": tested}
            header = replace(header, scores={**header.scores, **scores}, diagnostics=diagnose(backbone, done)[0])
            replace(adapted.prompt, header=header).save_pretrained(self.output)
            save_plan(self, plan_beside(self.output))
            shutil.rmtree(work, ignore_errors=True)
        lines = [verdict.says for verdict in verdicts]
        lines += [] if adapted.dev_score is None else [f"dev {adapted.dev_score:.3f} at step {adapted.best_step}"]
        print(*lines, score_lines({f"test {name}": value for name, value in results.scores.items()}), sep="\n")
        return print(self.output)


def settings_of_prior(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with method, options, backbone and settings of the prior that is named; what is given wins."""
    if given.get("prior") is None:
        return dict(given)
    from promptprior.cli.common import header_at

    header = header_at(given, "prior")
    if header is None:
        return dict(given)
    shared = {item.name: header.settings[item.name] for item in fields(Settings) if item.name in header.settings}
    settings = to_mapping(from_mapping(Settings, shared, str(given["prior"])))  # under the names of this version
    method, facts = header.settings.get("method"), ("name", "needs_sources", "uses_shots")
    options = {k: v for k, v in method.items() if k not in facts} if isinstance(method, Mapping) else {}
    is_same = given.get("method", header.method) == header.method
    own = {"method": header.method, "backbone": header.backbone.name, "settings": settings}
    return merge_settings(given, {**own, "options": options if is_same else {}})


VERB = Verb(
    "adapt",
    AdaptPlan,
    AdaptPlan.run,
    "promptprior adapt --prior runs/prior --target adjective_polarity --shots 8 --output runs/prompt",
    defaults=settings_of_prior,
    is_parallel=True,
)
