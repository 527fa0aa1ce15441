"""What work will cost before it runs: tokens of a stage, and seconds from a quick measurement.

A token that is trained on counts 1, one that is only scored SCORED. Texts are counted by their tokens, without the
prompts that all texts of a copy share.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.config.training import Settings, Training
from promptprior.methods import Method
from promptprior.tasks import Task, collate

SCORED = 0.4  # measured: forward without gradient over forward and backward, SmolLM2 on two cores
SAMPLE = 30  # examples whose length is measured


def text_tokens(backbone: Backbone, task: Task) -> float:
    """Mean tokens of a task's texts with their answers, from the first few."""
    return mean(map(len, training_tokens(backbone, task, task.split("train")[:SAMPLE])))


def source_cost(backbone: Backbone, sources: Sequence[Task], stage: Training, length: int) -> float:
    """Tokens of training a prompt on sources as `multitask` does; a method's `source_passes` multiply them."""
    return stage.steps * (stage.batch_size * mean(text_tokens(backbone, s) for s in sources) + length)


@dataclass(frozen=True)
class TargetSize:
    """What an estimate needs to know of a target: mean tokens of a text with its answer, and examples per class."""

    text_tokens: float
    class_sizes: tuple[int, ...]


def target_size(backbone: Backbone, task: Task) -> TargetSize:
    """Measure a target."""
    examples = task.split("train")
    has_classes = task.is_choice and len({e.choices for e in examples[:50]}) == 1
    class_sizes = Counter(e.label for e in examples).values() if has_classes else [len(examples)]
    return TargetSize(text_tokens(backbone, task), tuple(class_sizes))


def adapting_cost(method: Method, target: TargetSize, k: int, settings: Settings, tested: int) -> float:
    """Tokens of adapting a method to k shots of a target, if it uses any, and of testing on so many examples.

    Shots are counted as a k-shot draw would be, and not drawn: k of each class for training and k for dev, as far as
    there are so many, and of dev at most `dev_limit` in all.
    """
    stage, testing = settings.target, SCORED * tested * target.text_tokens
    if not method.uses_shots:
        return testing
    train = dev = 0
    for size in target.class_sizes:
        half = min(k, size // 2)
        if settings.dev_limit is None:
            train, dev = train + half, dev + half
        else:
            dev_half = min(half, max(1, settings.dev_limit // len(target.class_sizes)))
            train, dev = train + min(k, size - dev_half), dev + dev_half
    if not method.trains:
        return SCORED * (train + dev) * target.text_tokens + testing
    dev_evaluations = 2 + (stage.steps // stage.eval_every if stage.eval_every else 0)
    training = stage.steps * (min(stage.batch_size, train) * target.text_tokens + settings.length)
    copies = method.adaptation_copies(settings) * len(stage.learning_rates)
    return copies * (training + SCORED * dev_evaluations * dev * target.text_tokens) + testing


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
