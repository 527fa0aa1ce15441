"""Source prompts, what SPoT, ATTEMPT and prompt arithmetic start from: one for each source, all from one start.

They are trained as copies of one run, or read from files that others trained. A prior of them has "prompt" and "start",
Float[S, L, D]; the start is the same for all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.artifacts.header import tensor_digest
from promptprior.backbone import training_tokens
from promptprior.config.training import Training
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.methods.method import Episode, FitResult, Method, RunContext, stacked
from promptprior.notation import Float, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.sampling.draws import Draws, EpisodeDraws, Pool
from promptprior.tasks.task import Task
from promptprior.train import Run


@runtime_checkable
class TakesPrompts(Protocol):
    """A method that may be given its source prompts."""

    @property
    def source_prompts(self) -> tuple[Path, ...]:
        """Files and folders of prompts; none: they are trained."""
        ...


def learns_from_tasks(method: Method) -> bool:
    """Whether a method's prior needs source tasks: not where it is given prompts that others trained on theirs."""
    return method.needs_sources and not (isinstance(method, TakesPrompts) and method.source_prompts)


def made_from(method: Method, sources: Sequence[Task]) -> list[str]:
    """Fingerprints of all that a method's prior is made from: source tasks, and the numbers of prompts it is given."""
    if not method.needs_sources:
        return []
    return [t.fingerprint for t in sources] + [tensor_digest(read(file)) for file in given_files(method)]


def source_labels(method: Method, sources: Sequence[Task]) -> tuple[str, ...]:
    """What the sources of a method's prior are called: tasks, or the files of prompts it is given."""
    if not method.needs_sources:
        return ()
    files = given_files(method)
    return tuple(labels(files) if files else [t.name for t in sources])


def given_files(method: Method) -> list[Path]:
    """The files of the prompts that a method is given."""
    return files_of(method.source_prompts) if isinstance(method, TakesPrompts) else []


def trained_prompts(context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
    """Train one prompt per source, all as copies of one run from one start, at the cost in rows of one mixed prompt."""
    stage = context.settings.source
    start = context.start(seed, "spot")
    per_source = max(1, stage.batch_size // len(sources))
    pools = [context.pool(task, task_index=i, copy=i) for i, task in enumerate(sources)]
    draws = EpisodeDraws(pools, per_source, [seed] * len(sources))
    key = context.key("source prompts", seed, *(t.fingerprint for t in sources))
    done = context.train(direct_run(context, key, stage, stacked([start] * len(sources)), draws), "source")
    return learned(context, done.params["prompt"], start, [t.name for t in sources], done.cost)


def direct_run(context: RunContext, key: str, stage: Training, params: dict[str, Tensor], draws: Draws) -> Run:
    """Descent on free prompts, each its own copy."""
    objective = PromptObjective(context.backbone, Direct(context.settings.length, context.backbone.width))
    return context.descent(key, stage, objective, params, draws)


def given_prompts(context: RunContext, paths: Sequence[Path], start: Path | None) -> FitResult:
    """Prompts that others trained, as they are in files; without the file of their `start`, their mean stands for it.

    Raises ArtifactError for a file that holds no prompt, SpecError for one of another length or width.
    """
    files = files_of(paths)
    prompts = torch.stack([fitting_prompt(context, file) for file in files])
    begun = fitting_prompt(context, start) if start is not None else prompts.mean(0)
    return learned(context, prompts, begun, labels(files))


def labels(files: Sequence[Path]) -> list[str]:
    """Short names of files, where these differ."""
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The prompts that several paths stand for."""
    return [file for path in paths for file in prompt_files(path)]


def prompt_files(path: Path) -> list[Path]:
    """The prompts a path stands for: itself where it is one, else the files and folders in it, by name."""
    if not path.exists():
        raise SpecError(f"source prompt {path} (--options.source-prompts): no such file or folder")
    marks = ("adapter_config.json", "promptprior.json", "prior")
    if path.is_file() or any((path / mark).exists() for mark in marks):
        return [path]
    found = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    if not found:
        raise SpecError(
            f"source prompts {path} (--options.source-prompts): the folder is empty; expected prompts in it"
        )
    return found


def read(path: Path) -> Float[Tensor, "L D"]:
    """The prompt in a file."""
    from promptprior.artifacts.import_prompt import read_prompt

    return read_prompt(path)


def fitting_prompt(context: RunContext, path: Path) -> Float[Tensor, "L D"]:
    """The prompt in a file. Raises SpecError unless it has the length and width of this run."""
    prompt = read(path)
    length, width = context.settings.length, context.backbone.width
    if tuple(prompt.shape) != (length, width):
        raise SpecError(
            f"source prompt {path} is {prompt.shape[0]} x {prompt.shape[1]}; this run has prompts of {length} x "
            f"{width} (--length, --backbone)"
        )
    return prompt.to(context.backbone.frozen.device, context.backbone.frozen.prompt_dtype)


def learned(
    context: RunContext,
    prompts: Float[Tensor, "S L D"],
    start: Float[Tensor, "L D"],
    names: Sequence[str],
    cost: Cost = Cost(),  # noqa: B008  frozen
) -> FitResult:
    """What a prior of source prompts holds."""
    params = {"prompt": prompts, "start": start.expand_as(prompts).clone()}
    form = Direct(context.settings.length, context.backbone.width)
    return FitResult(form, params, {"sources": list(names)}, cost)


def source_bank(context: RunContext, prior: Prior) -> tuple[Float[Tensor, "S L D"], Float[Tensor, "L D"]]:
    """The prompts of a prior's sources, and the start they share."""
    device = context.backbone.frozen.device
    return prior.params["prompt"].to(device), prior.params["start"][0].to(device)


def source_names(prior: Prior) -> list[str]:
    """What the sources of a prior are called."""
    return [str(name) for name in prior.header.diagnostics["sources"]]  # type: ignore[attr-defined]


def similarities(
    context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode], steps: int
) -> list[Float[Tensor, " S"]]:
    """How like every source each episode's target is: cosines of what training added to the start they share.

    The target's embedding is what a short training from that start adds on its shots.
    """
    banks = [source_bank(context, prior) for prior in priors]
    stage = replace(context.settings.target, steps=steps, schedule="constant")
    pools = [
        Pool(training_tokens(context.backbone, e.task, e.shots.train), task=0, copy=c) for c, e in enumerate(episodes)
    ]
    draws = EpisodeDraws(pools, stage.batch_size, [e.seed for e in episodes])
    key = context.key("probe", steps, *(e.key for e in episodes))
    begun = stacked([start for _, start in banks])
    probed = context.train(direct_run(context, key, stage, begun, draws), "probe").last["prompt"]
    return [cosines(bank - start, after - start) for (bank, start), after in zip(banks, probed, strict=True)]


def cosines(bank: Float[Tensor, "S L D"], one: Float[Tensor, "L D"]) -> Float[Tensor, " S"]:
    """Cosine of average tokens: the task embeddings of Vu et al."""
    return torch.cosine_similarity(bank.mean(1), one.mean(0)[None], dim=1)
