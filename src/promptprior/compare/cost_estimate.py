"""What a comparison will cost before it runs: tokens per stage, and seconds from a quick measurement.

A token that is trained on counts 1, one that is only scored SCORED. Texts are counted by their tokens, without the
prompts that all texts of a copy share.
"""

import time
from collections.abc import Sequence
from statistics import mean

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.compare.plan import Cell, Plan
from promptprior.config.training import Settings, Training
from promptprior.methods import Method
from promptprior.tasks import Task, collate
from promptprior.tasks.sampling.draws import k_shot

SCORED = 0.4  # measured: forward without gradient over forward and backward, SmolLM2 on two cores
SAMPLE = 30  # examples whose length is measured


def text_length(backbone: Backbone, task: Task, split: str = "train") -> float:
    """Mean tokens of a text with its answer."""
    return mean(map(len, training_tokens(backbone, task, task.split(split)[:SAMPLE])))


def source_cost(backbone: Backbone, sources: Sequence[Task], stage: Training, length: int) -> float:
    """Tokens of fitting one prior."""
    return stage.steps * (stage.batch_size * mean(text_length(backbone, s) for s in sources) + length)


def cell_cost(backbone: Backbone, cell: Cell, plan: Plan) -> float:
    """Tokens of adapting and testing one cell."""
    tested = len(cell.target.split("test")[: plan.test_limit])
    return adapting_cost(backbone, cell.method, cell.target, cell.k, cell.seed, plan.resolved(), tested)


def adapting_cost(
    backbone: Backbone, method: Method, target: Task, k: int, seed: int, settings: Settings, tested: int
) -> float:
    """Tokens of adapting a method to k shots of a target, if it uses any, and testing on some examples."""
    stage, per_text = settings.target, text_length(backbone, target)
    if not method.uses_shots:
        return SCORED * tested * per_text
    shots = k_shot(target, k, seed, settings.dev_limit)
    if not method.trains:
        return SCORED * (len(shots.train) + len(shots.dev) + tested) * per_text
    eval_steps = 2 + (stage.steps // stage.eval_every if stage.eval_every else 0)
    trained = stage.steps * (min(stage.batch_size, len(shots.train)) * per_text + settings.length)
    copies = method.adaptation_copies(settings) * len(stage.learning_rates)
    return copies * (trained + SCORED * eval_steps * len(shots.dev) * per_text) + SCORED * tested * per_text


def tokens_per_second(backbone: Backbone, task: Task, length: int) -> float:
    """Measured training tokens per second: the fastest of three steps on sixteen texts."""
    tokens = training_tokens(backbone, task, task.split("train")[:16])
    batch = collate(tokens)
    frozen = backbone.frozen
    prompt = torch.zeros(1, length, backbone.width, dtype=frozen.prompt_dtype, device=frozen.device, requires_grad=True)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        backbone.losses(prompt, batch).sum().backward()
        seconds.append(time.perf_counter() - start)
    return (sum(map(len, tokens)) + length) / min(seconds)
