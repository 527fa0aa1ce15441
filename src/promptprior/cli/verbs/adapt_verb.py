"""promptprior adapt: a prior and a few examples of a target to a prompt."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from promptprior.cli.plan_file import beside, save_plan
from promptprior.cli.plans import AdaptPlan
from promptprior.cli.verb import Verb

if TYPE_CHECKING:
    from promptprior.adapt import Adapted
    from promptprior.artifacts.artifact import Prior
    from promptprior.backbone import Backbone
    from promptprior.config.training import Settings
    from promptprior.evaluate import EvalResult
    from promptprior.methods import Episode, Method


def run(plan: AdaptPlan, dry_run: bool) -> None:
    """Adapt to one episode, test the prompt, save it."""
    from promptprior.adapt import make_episode
    from promptprior.artifacts.artifact import Prior, check_saveable
    from promptprior.cli.common import artifact_folder, load_backbone
    from promptprior.compare.plan import with_steps
    from promptprior.methods import make_method
    from promptprior.tasks import load_task

    method = make_method(plan.method, plan.options)
    settings = plan.settings if plan.steps is None else with_steps(plan.settings, plan.steps)
    task = load_task(plan.target, plan.data)
    episode = make_episode(task, plan.shots, plan.seed, settings.dev_limit)
    check_saveable(plan.output)
    backbone = load_backbone(plan)
    prior = None if plan.prior is None else Prior.from_pretrained(artifact_folder(plan.prior), backbone.card)
    if dry_run:
        return print(preview(plan, method, settings, backbone, episode))
    return adapt_one(plan, method, settings, backbone, prior, episode)


def preview(plan: AdaptPlan, method: "Method", settings: "Settings", backbone: "Backbone", episode: "Episode") -> str:
    """What would run, and its cost."""
    from promptprior.cli.common import cost_line
    from promptprior.compare.cost_estimate import adapting_cost, target_size
    from promptprior.methods.target_only.prompt_tuning import PromptTuning

    tested = len(episode.task.split("test")[: plan.test_limit])
    size = target_size(backbone, episode.task)
    cost = adapting_cost(method, size, plan.shots, settings, tested)
    if plan.guard:
        cost += adapting_cost(PromptTuning(), size, plan.shots, settings, 0)
    shots = f"{len(episode.shots.train)} examples, {len(episode.shots.dev)} for dev"
    return (
        f"adapt {method.name} to {episode.task.name}: {shots}, {settings.target.steps} steps, {tested} to test\n"
        + cost_line(backbone, episode.task, settings.length, cost)
    )


def adapt_one(
    plan: AdaptPlan,
    method: "Method",
    settings: "Settings",
    backbone: "Backbone",
    prior: "Prior | None",
    episode: "Episode",
) -> None:
    """Adapt with checkpoints beside the output, then save prompt and plan."""
    import shutil

    from promptprior.adapt import adapt, diagnose, score_on_test
    from promptprior.cli.common import watcher
    from promptprior.files import claimed
    from promptprior.fit import RunControl
    from promptprior.guard import guarded

    work = plan.output.with_name(plan.output.name + ".work")
    control = RunControl(work, watcher(method.name, plan.tensorboard))
    inputs = (method, [episode], backbone, prior, settings, control)
    with claimed(work):
        verdicts = guarded(*inputs) if plan.guard else []
        done = [verdict.adapted for verdict in verdicts] or adapt(*inputs)
        results = score_on_test(backbone, done, plan.test_limit)[0]
        header = done[0].prompt.header
        tested = {"test": dict(results.scores), "test_examples": len(episode.task.split("test")[: plan.test_limit])}
        header = replace(header, scores={**header.scores, **tested}, diagnostics=diagnose(backbone, done)[0])
        replace(done[0].prompt, header=header).save_pretrained(plan.output)
        save_plan(plan, beside(plan.output))
        shutil.rmtree(work, ignore_errors=True)
    print("\n".join([*(verdict.says for verdict in verdicts), summary(done[0], results)]))
    print(plan.output)


def summary(adapted: "Adapted", results: "EvalResult") -> str:
    """Dev and test scores in a line each."""
    from promptprior.cli.score_lines import score_lines

    dev = "" if adapted.dev_score is None else f"dev {adapted.dev_score:.3f} at step {adapted.best_step}\n"
    return dev + score_lines({f"test {name}": value for name, value in results.scores.items()})


def defaults(given: Mapping[str, object]) -> dict[str, object]:
    """A prior brings its method, options, backbone and settings; what is given wins."""
    if given.get("prior") is None:
        return dict(given)
    from promptprior.cli.common import filled, header_at, options_in, settings_in

    header = header_at(given, "prior")
    if header is None:
        return dict(given)
    own = {"method": header.method, "backbone": header.backbone.name, "settings": settings_in(header)}
    same = given.get("method", header.method) == header.method
    return filled(given, {**own, "options": options_in(header) if same else {}})


VERB = Verb(
    "adapt",
    AdaptPlan,
    run,
    "promptprior adapt --prior runs/prior --target adjective_polarity --shots 8 --output runs/prompt",
    defaults=defaults,
    is_parallel=True,
)
