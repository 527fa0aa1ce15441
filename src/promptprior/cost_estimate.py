"""What work will cost before it runs: tokens of a stage, and seconds from a quick measurement.

A token that is read with a gradient counts 1, without one SCORED, in a Hessian product SECOND_ORDER. What a method
multiplies is its own to say (methods/workload.py). Texts that are generated are not counted.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from promptprior.backbone import Backbone, ranking_tokens, training_tokens
from promptprior.config.training import Settings
from promptprior.cost import SCORED
from promptprior.heads.named_heads import NAMED_HEADS
from promptprior.methods import Method, make_method
from promptprior.methods.choosing import Choosing, candidate_runs, candidate_settings, trained_alike
from promptprior.methods.target_only.in_context import demonstration_room
from promptprior.tasks import Task, collate

HEAD_DEPTH = 0.7  # of the layers, that a fitted head reads on average
SAMPLE = 30  # examples whose length is measured


def text_tokens(backbone: Backbone, tasks: Sequence[Task]) -> float:
    """Mean tokens of tasks' texts with their answers, from the first few of each."""
    return mean(mean(map(len, training_tokens(backbone, t, t.split("train")[:SAMPLE]))) for t in tasks)


def source_cost(method: Method, tokens: float, sources: int, settings: Settings) -> float:
    """Tokens of a method's source stage, on so many sources whose texts have so many tokens on average."""
    stage = method.source_recipe()
    work = stage.workload(settings, sources)
    step = work.source_texts * tokens + stage.prompt_tokens(settings, work.source_texts, sources)
    return work.source_passes * settings.source.steps * step


@dataclass(frozen=True)
class TargetSize:
    """What an estimate needs to know of a target.

    `text_tokens` are the mean tokens of a text with its answer, as training reads it, and `ranked_tokens` with all its
    choices, as ranking does. `class_sizes` has the training examples of each class, `validation` counts all validation
    examples. `room` is how many tokens the context has for demonstrations, None where it has no end.
    """

    text_tokens: float
    ranked_tokens: float
    class_sizes: tuple[int, ...]
    validation: int = 0
    room: int | None = None


def target_size(backbone: Backbone, task: Task) -> TargetSize:
    """Measure a target."""
    examples = task.split("train")
    has_classes = task.is_choice and len({e.choices for e in examples[:50]}) == 1
    class_sizes = Counter(e.label for e in examples).values() if has_classes else [len(examples)]
    encode = ranking_tokens if task.is_choice else training_tokens
    ranked = mean(map(len, encode(backbone, task, examples[:SAMPLE])))
    validation, room = len(task.examples.get("validation", ())), demonstration_room(backbone, task)
    return TargetSize(text_tokens(backbone, [task]), ranked, tuple(class_sizes), validation, room)


def adapting_cost(
    method: Method, target: TargetSize, k: int, settings: Settings, tested: int, is_trained: bool = False
) -> float:
    """Tokens of adapting a method to k shots of a target, and of testing on so many examples; where it `is_trained`
    only its head is still to be fitted.

    Shots are counted as a k-shot draw would be, and not drawn: k of each class for training and k for dev, as far as
    there are so many, and of dev at most `dev_limit` in all. With folds each fold trains, all examples are answered
    once more, and a refit is taken to last half of the steps: how many it has is chosen later.
    """
    if isinstance(method, Choosing):
        candidates = [make_method(name) for name in method.candidates]
        return candidates_cost(method, candidates, target, k, settings, tested)
    train = dev = 0
    for place, size in enumerate(target.class_sizes):
        share = k
        if settings.shots_are == "total":
            even, rest = divmod(k, len(target.class_sizes))
            share = even + (place < rest)
        half = min(share, size // 2)
        if settings.dev_from == "validation":
            train += min(share, size)
        elif settings.dev_limit is None:
            train, dev = train + half, dev + half
        else:
            dev_half = min(half, max(1, settings.dev_limit // len(target.class_sizes)))
            train, dev = train + min(share, size - dev_half), dev + dev_half
    if settings.dev_from == "validation":
        classes, limit = len(target.class_sizes), settings.dev_limit
        dev = min(target.validation, target.validation if limit is None else classes * max(1, limit // classes))

    every, folds, teaching = train + dev, 1, float(train)  # teaching: examples that the final prompt learned from
    to_learn, to_ask = float(train), float(dev)  # of each fold
    if settings.folds:
        teaching = every
    if settings.folds > 1:
        folds = min(settings.folds, every)
        to_learn, to_ask = every - every / folds, every / folds

    def shown(learned: float) -> float:
        count = method.shown_shots(round(learned))  # demonstrations, as many of them as fit
        if target.room is not None:
            count = min(count, max(1, int(target.room / target.text_tokens)))
        return count * target.text_tokens

    def scored(texts: float, learned: float) -> float:
        prompts = shown(learned) or method.prompt_tokens(settings, texts)
        return SCORED * (texts * target.ranked_tokens + prompts) if texts else 0.0

    def stepped(learned: float) -> float:
        texts = min(stage.batch_size, learned)
        # Of demonstrations each text hides others, so that it has a prompt of its own
        return texts * target.text_tokens + (texts * shown(learned) or method.prompt_tokens(settings, texts))

    stage, work = settings.target, method.workload(settings)
    members = work.answering_prompts
    head = NAMED_HEADS.get(method.head)
    if head is None:
        testing = members * scored(tested, teaching)
        testing += folds * members * scored(to_ask, to_learn) if settings.folds else 0.0  # out of fold
    else:  # fitted on all shots, and with folds on those of every fold; equal prompts read a text once
        times = 1 + folds if settings.folds else 1
        times = times if method.trains or method.adapts_one_by_one else min(times, 2)
        testing = scored(tested + times * every, teaching) if head.reads_nll else 0.0
        depth = work.head_depth
        states = min(HEAD_DEPTH, depth) * tested + depth * times * every if head.sites(1) else 0.0
        testing += SCORED * states * target.text_tokens
    if is_trained:
        return testing
    if not method.trains:  # dev is asked of the head, if there is one
        return testing + (folds * scored(to_ask, to_learn) if head is None else 0.0)
    asked = {0, stage.steps, *(s for s in stage.eval_steps if s <= stage.steps)}
    asked |= set(range(0, stage.steps, stage.dev_every)) if stage.dev_every else set()
    copies, before = work.adaptation_copies * len(stage.learning_rates), work.steps_before
    trying = (before + copies * stage.steps) * stepped(to_learn) + copies * len(asked) * scored(to_ask, to_learn)
    refit = (before + members * stage.steps / 2) * stepped(teaching) if settings.folds else 0.0
    return folds * trying + refit + testing


def candidates_cost(
    method: Choosing, candidates: Sequence[Method], target: TargetSize, k: int, settings: Settings, tested: int
) -> float:
    """Tokens of adapting candidates one after the other as a method that chooses does, each as often as that does it
    (`adapting_cost`)."""
    total = 0.0
    for place, candidate in enumerate(candidates):
        runs, own = candidate_runs(method, candidate, settings), candidate_settings(method, candidate, settings)
        is_trained = trained_alike(candidate, candidates[:place], own) is not None
        total += runs * adapting_cost(candidate, target, k, own, tested, is_trained)
    return total


def tokens_per_second(backbone: Backbone, task: Task, length: int) -> float:
    """Measured training tokens per second: the fastest of three steps on sixteen texts."""
    tokens = training_tokens(backbone, task, task.split("train")[:16])
    batch, frozen = collate(tokens), backbone.frozen
    prompt = torch.zeros(1, length, backbone.width, dtype=frozen.prompt_dtype, device=frozen.device, requires_grad=True)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        backbone.losses(prompt, batch).sum().backward()
        seconds.append(time.perf_counter() - start)
    return (sum(map(len, tokens)) + length) / min(seconds)
