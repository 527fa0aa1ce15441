"""Source prompts, what SPoT, ATTEMPT and prompt arithmetic start from: one for each source, all from one start.

They are trained as copies of one run, or read from files that others trained. A prior of them has "prompt" and "start",
Float[S, L, D]; the start is the same for all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.artifacts.header import tensor_digest
from promptprior.artifacts.import_prompt import read_prompt
from promptprior.errors import SpecError
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import FitResult
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from promptprior.tasks.task import Task


def learns_from_tasks(method: Recipe) -> bool:
    """Whether a method's prior needs source tasks: not where it is given prompts that others trained on theirs."""
    return method.needs_sources and not getattr(method, "source_prompts", ())


def prior_origin(method: Recipe, sources: Sequence[Task]) -> list[str]:
    """Fingerprints of all that a method's prior is made from: source tasks, and the numbers of prompts it is given."""
    if not method.needs_sources:
        return []
    files = prompt_files(getattr(method, "source_prompts", ()))
    return [t.fingerprint for t in sources] + [tensor_digest(read_prompt(file)) for file in files]


def source_labels(method: Recipe, sources: Sequence[Task]) -> tuple[str, ...]:
    """What the sources of a method's prior are called: tasks, or the files of prompts it is given."""
    if not method.needs_sources:
        return ()
    return tuple(file_labels(prompt_files(getattr(method, "source_prompts", ()))) or [t.name for t in sources])


def train_prompts(context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
    """Train one prompt per source, all as copies of one run from one start, at the cost in rows of one mixed prompt."""
    stage = context.settings.source
    start = context.initial_prompt(seed, "spot")
    pools = [Pool(context.tokens(task, task.split("train")), i, i) for i, task in enumerate(sources)]
    draws = EpisodeDraws(pools, max(1, stage.batch_size // len(sources)), [seed] * len(sources))
    key = context.key("source prompts", seed, *(t.fingerprint for t in sources))
    initial = InitialParams(context.direct(), stacked([start] * len(sources)))
    done = context.train(context.descent(key, stage, initial, draws), "source")
    params = {"prompt": done.params["prompt"], "start": start.expand(len(sources), -1, -1).clone()}
    return FitResult(context.direct(), params, {"sources": [task.name for task in sources]}, done.cost)


def read_prompts(context: RunContext, paths: Sequence[Path], start: Path | None) -> FitResult:
    """Prompts that others trained, as they are in files; without the file of their `start`, their mean stands for it.

    Raises ArtifactError for a file that holds no prompt, SpecError for one of another length or width.
    """
    files = prompt_files(paths)
    context.settings.require_tokens("what reads source prompts from files (--options.source-prompts)")
    shape = (context.settings.length, context.backbone.width)
    prompts = {file: read_prompt(file) for file in [*files, *([start] if start is not None else [])]}
    for file, prompt in prompts.items():
        if tuple(prompt.shape) != shape:
            raise SpecError(
                f"source prompt {file} is {prompt.shape[0]} x {prompt.shape[1]}; this run has prompts of {shape[0]} x "
                f"{shape[1]} (--length, --backbone)"
            )
    frozen = context.backbone.frozen
    bank = torch.stack([prompts[file] for file in files]).to(frozen.device, frozen.prompt_dtype)  # [S, L, D]
    shared = prompts[start].to(bank) if start is not None else bank.mean(0)
    params = {"prompt": bank, "start": shared.expand_as(bank).clone()}
    return FitResult(context.direct(), params, {"sources": file_labels(files)})


def file_labels(files: Sequence[Path]) -> list[str]:
    """Short names of files, where these differ."""
    names = [file.stem for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def prompt_files(paths: Sequence[Path]) -> list[Path]:
    """The prompts that paths stand for: each itself where it is one, else the files and folders in it, by name.

    Raises SpecError for a path that is not there, and for an empty folder.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise SpecError(f"source prompt {path} (--options.source-prompts): no such file or folder")
        signs = ("adapter_config.json", "promptprior.json", "prior")  # of a folder that is a prompt itself
        if path.is_file() or any((path / sign).exists() for sign in signs):
            files.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        if not inside:
            raise SpecError(
                f"source prompts {path} (--options.source-prompts): the folder is empty; expected prompts in it"
            )
        files += inside
    return files


def prior_prompts(context: RunContext, prior: Prior) -> tuple[Float[Tensor, "S L D"], Float[Tensor, "L D"]]:
    """The prompts of a prior's sources, and the start they share."""
    device = context.backbone.frozen.device
    return prior.params["prompt"].to(device), prior.params["start"][0].to(device)


def source_similarities(
    context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode], steps: int
) -> list[Float[Tensor, " S"]]:
    """How similar each episode's target is to every source: cosines of what training added to the start they share.

    The target's embedding is what `steps` steps of training from that start add on its shots.
    """
    prompts = [prior_prompts(context, prior) for prior in priors]
    stage = replace(context.settings.target, steps=steps, schedule="constant")
    pools = [Pool(context.tokens(e.task, e.shots.train), 0, copy) for copy, e in enumerate(episodes)]
    draws = EpisodeDraws(pools, stage.batch_size, [e.seed for e in episodes])
    key = context.key("probe", steps, *(e.key for e in episodes))
    initial = InitialParams(context.direct(), stacked([start for _, start in prompts]))
    probes = context.train(context.descent(key, stage, initial, draws), "probe").last["prompt"]  # [E, L, D]
    # cosines of average tokens: the task embeddings of Vu et al.
    return [
        torch.cosine_similarity((bank - start).mean(1), (probe - start).mean(0)[None], dim=1)  # [S]
        for (bank, start), probe in zip(prompts, probes, strict=True)
    ]
