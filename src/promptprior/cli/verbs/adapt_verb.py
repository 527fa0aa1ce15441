"""promptprior adapt: a prior and a few examples of a target to a prompt."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.cli.output import format_table, score_lines, show
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, MLFLOW, OPTIONS, TENSORBOARD, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE, STEPS, load_backbone, with_steps
from promptprior.config.mapping import check_bounds, merge_settings, to_mapping
from promptprior.config.plan_file import check_output, plan_beside, save_plan
from promptprior.config.training import SEED_BOUNDS, SHOT_BOUNDS, STEP_BOUNDS, Settings, setting
from promptprior.errors import SpecError

if TYPE_CHECKING:  # help must not wait for torch
    from promptprior.methods import Episode


@dataclass(frozen=True)
class AdaptPlan:
    """The settings of `promptprior adapt`. With a prior, method, backbone and settings are its own unless given."""

    method: str = setting("prompt_tuning", "method; a prior brings its own")
    prior: Path | None = setting(
        None, "folder that fit wrote; its method adapts, or is one more candidate of --method auto"
    )
    target: str = setting("", "target task: a name, file or folder")
    shots: int = setting(16, "examples per class to learn from, and as many again for dev", **SHOT_BOUNDS)
    seed: int = setting(13, "draw of shots, start and batches", **SEED_BOUNDS)
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    steps: int | None = setting(None, STEPS, **STEP_BOUNDS)
    test_limit: int | None = setting(
        None, "at most this many test examples; 0: do not test, only save the prompt", least=0, most=10**9
    )
    guard: bool = setting(False, "keep the prior only where dev shots prefer it to prompt_tuning and zero_shot")
    tensorboard: Path | None = setting(None, TENSORBOARD)
    mlflow: str | None = setting(None, MLFLOW)
    output: Path = setting(Path("runs/prompt"), "folder for the prompt; a plain prompt's is a PEFT adapter")
    force: bool = setting(False, FORCE)
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict, metadata=OPTIONS)

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task to adapt to")
        check_bounds(self)

    def run(self, dry_run: bool) -> None:
        """Adapt to one episode with checkpoints beside the output, test the prompt, save it with its plan."""
        from promptprior.adapt import adapt, diagnose, make_episode, score_on_test
        from promptprior.artifacts.artifact import Prior, artifact_folder, check_saveable
        from promptprior.cli.common import cost_line, header_at, holds_own, warn_of_conflicts
        from promptprior.compare.progress import watch_steps
        from promptprior.cost_estimate import adapting_cost, candidates_cost, target_size
        from promptprior.files import claimed, remove_folder
        from promptprior.fit import RunControl
        from promptprior.guard import guarded
        from promptprior.methods import make_method
        from promptprior.methods.choosing import Choosing, candidates_of
        from promptprior.preflight import check_lengths, check_metrics, check_start
        from promptprior.tasks import load_task
        from promptprior.watch import step_logs

        prior_folder = None if self.prior is None else artifact_folder(self.prior)
        reads, is_own = (prior_folder, self.target, self.data), holds_own(self.output, "prompt")
        check_output(self.output, "adapt", reads, force=self.force, is_own=is_own)
        method = make_method(self.method, self.options)
        candidates = candidates_of(method, header_at(vars(self), "prior")) if isinstance(method, Choosing) else []
        settings = self.settings if self.steps is None else with_steps(self.settings, self.steps)
        task = load_task(self.target, self.data)
        episode = make_episode(task, self.shots, self.seed, settings)
        check_saveable(self.output)
        backbone = load_backbone(self)
        prior = None if prior_folder is None else Prior.from_pretrained(prior_folder, backbone.card)
        tested = len(tests := task.split("test")[: self.test_limit])
        check_start(backbone, settings)
        check_lengths(backbone, task, [*episode.shots.train, *episode.shots.dev, *tests], settings.length)
        if tested:
            check_metrics(task, self.test_limit)
        if dry_run:
            size = target_size(backbone, task)
            if isinstance(method, Choosing):  # a prior has a candidate of its own
                cost = candidates_cost(method, candidates, size, self.shots, settings, tested)
            else:
                cost = adapting_cost(method, size, self.shots, settings, tested)
            if self.guard:
                cost += adapting_cost(make_method("prompt_tuning"), size, self.shots, settings, 0)
            shots = f"{len(episode.shots.train)} examples, {len(episode.shots.dev)} for dev"
            shots += f", --folds {settings.folds}" if settings.folds else ""
            print(f"adapt {method.name} to {task.name}: {shots}, {settings.target.steps} steps, {tested} to test")
            return print(cost_line(backbone, task, settings.length, cost))

        warn_of_conflicts([task])
        work = self.output.with_name(self.output.name + ".work")
        control = RunControl(work, watch_steps(method.name, step_logs(self.tensorboard, self.mlflow, self.output)))
        arguments = (method, [episode], backbone, prior, settings, control)
        with claimed(work, self.output, plan_beside(self.output)):
            verdicts = guarded(*arguments) if self.guard else []
            done = [verdict.adapted for verdict in verdicts] or adapt(*arguments)
            adapted, test_scores = done[0], dict[str, float]()
            header = adapted.prompt.header
            adapted.prompt.save_pretrained(self.output)  # before testing, which may fail
            save_plan(replace(self, settings=settings, steps=None), plan_beside(self.output), "adapt")
            if tested:
                test_scores = dict(score_on_test(backbone, done, self.test_limit)[0].scores)
                header = replace(header, scores={**header.scores, "test": test_scores, "test_examples": tested})
            header = replace(header, diagnostics=diagnose(backbone, done)[0])
            replace(adapted.prompt, header=header).save_pretrained(self.output)
            remove_folder(work)
        folds = settings.folds or (method.folds if isinstance(method, Choosing) else 0)  # of most candidates
        lines = [*(verdict.says for verdict in verdicts), shots_line(episode, folds)]
        lines += leaderboard_lines(header.scores.get("auto"))
        error = "" if adapted.dev_error is None else f" (standard error {adapted.dev_error:.3f})"
        where, at = "dev", f" at step {adapted.best_step}"
        if isinstance(method, Choosing):  # candidates have steps of their own
            where, at = "held out", ""
        elif settings.folds > 1:
            where = f"{settings.folds}-fold cross-validation"
        if adapted.dev_score is not None:
            lines.append(f"{where} {adapted.dev_score:.3f}{error}{at}")
        scores = {f"test {name}": value for name, value in test_scores.items()}
        lines.append(score_lines(scores, f"of {tested} test rows", tested) if tested else "not tested (--test-limit 0)")
        report = {
            "prompt": self.output,
            "method": header.method,
            "task": task.name,
            "dev_score": adapted.dev_score,
            "dev_error": adapted.dev_error,
            "best_step": adapted.best_step,
            "test": test_scores,
            "test_examples": tested,
            "examples": len(episode.shots.train) + len(episode.shots.dev),
            **({"auto": header.scores["auto"]} if "auto" in header.scores else {}),
        }
        return show("\n".join([*lines, str(self.output)]), report)


def leaderboard_lines(auto: Any) -> list[str]:
    """What each candidate of `--method auto` scored on held-out examples, and which answers; none for other methods."""
    if not auto:
        return []

    rows = []
    for line in auto["leaderboard"]:
        numbers = (line[name] for name in ("score", "error", "nll", "weight"))
        shown = ["" if number is None else f"{number:.3f}" for number in numbers]
        rows.append([line["method"], *shown, f"{line['seconds']:.1f}"])
    rows += [[name, "not run", "", "", "", f"about {seconds:.0f}"] for name, seconds in auto["not_run"].items()]
    table = format_table(["candidate", "held out", "std. error", "NLL", "weight", "seconds"], rows)
    cannot = [f"{name} cannot answer here: {reason}" for name, reason in auto["cannot"].items()]
    return [table, *cannot, auto.get("says", f"{auto['chosen']} answers")]


def shots_line(episode: "Episode", folds: int = 0) -> str:
    """How many examples were drawn, what for, and which classes gave fewer than were asked for."""
    from promptprior.tasks.sampling.draws import class_of

    shots, task = episode.shots, episode.task
    names = [example.target if class_of(task, example) != "all" else "all" for example in shots.train]
    fewer = [f"{name} {count}" for name, count in Counter(names).items() if count < episode.k]
    line = f"learned from {len(shots.train)} examples, {len(shots.dev)} others for dev"
    if folds:
        asked = f"{len(shots.dev)} of them" if folds == 1 else f"{folds} folds of them"
        line = f"learned from {len(shots.train) + len(shots.dev)} examples; {asked} chose rate and steps before"
    return line + (f"; fewer than {episode.k} of a class were there to draw: {', '.join(fewer)}" if fewer else "")


def with_settings_of_prior(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with method, options, backbone and settings of the prior that is named; what is given wins."""
    if given.get("prior") is None:
        return dict(given)
    from promptprior.cli.common import header_at
    from promptprior.methods.choosing import options_of_prior, settings_of_prior

    header = header_at(given, "prior")
    if header is None:
        return dict(given)
    settings = to_mapping(settings_of_prior(header, str(given["prior"])))
    options = options_of_prior(header)
    is_same = given.get("method", header.method) == header.method
    own = {"method": header.method, "backbone": header.backbone.name, "settings": settings}
    return merge_settings(given, {**own, "options": options if is_same else {}})


VERB = Verb(
    "adapt",
    AdaptPlan,
    AdaptPlan.run,
    "promptprior adapt --prior runs/prior --target adjective_polarity --shots 8 --output runs/prompt",
    defaults=with_settings_of_prior,
    is_parallel=True,
)
