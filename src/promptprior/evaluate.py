"""Honest scores of prompts: choices are ranked by their likelihood, free text is generated, metrics are the task's own.

Everything is batched over copies: the dev sets of all episodes, or the test sets of all targets, are one exam paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone, own_texts, ranking_tokens, training_tokens
from promptprior.errors import DataError
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.registry import parameterisation
from promptprior.processes import add_up
from promptprior.tasks.metrics import Prediction, score
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.task import Example, Split, Task

TEXTS_AT_ONCE = 512  # texts collated together; the engine cuts them further to fit its memory


@dataclass(frozen=True)
class EvalSet:
    """Examples of a task that one copy of the parameters answers. `tokens` hold every choice, or the right answer.

    `together` copies, from `copy` on, answer by the mean of their probabilities: a posterior predictive.
    """

    task: Task
    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    copy: int = 0
    task_index: int = 0
    together: int = 1


def make_eval_set(
    objective: Answering, task: Task, examples: Sequence[Example], copy: int = 0, task_index: int = 0
) -> EvalSet:
    """An exam, tokenised once."""
    encode = ranking_tokens if task.is_choice else training_tokens
    return EvalSet(task, examples, encode(objective.backbone, task, examples), copy, task_index)


@dataclass(frozen=True)
class EvalResult:
    """What an exam came to: the task's metrics, and the mean loss that selection falls back on (nats)."""

    scores: dict[str, float]
    nll: float


@torch.no_grad()
def evaluate_requests(
    objective: Answering, params: Params, eval_sets: Sequence[EvalSet], generate: bool = True
) -> list[EvalResult]:
    """Scores of all exams. Without `generate`, free-text exams have no scores, only their NLL."""
    losses = eval_set_losses(objective, params, eval_sets)
    answers = answered(objective, params, eval_sets, losses, generate)
    return [
        EvalResult(score(e.task, e.examples, p) if p else {}, right_answer_nll(e, nll))
        for e, nll, p in zip(eval_sets, losses, answers, strict=True)
    ]


def evaluate(
    prompt: Prompt, task: Task, backbone: Backbone, split: Split = "test", limit: int | None = None
) -> EvalResult:
    """Scores of a prompt on a split of a task (its first `limit` examples).

    Raises ArtifactError for a prompt of another backbone, DataError when the task has no such split.
    """
    objective = prompt_objective(prompt, backbone)
    eval_set = make_eval_set(objective, task, task.split(split)[:limit])
    return evaluate_requests(objective, prompt.params, [replace(eval_set, together=copies_of(prompt.params))])[0]


@torch.no_grad()
def predict(prompt: Prompt, task: Task, backbone: Backbone, examples: Sequence[Example]) -> list[Prediction]:
    """What a prompt answers to examples of a task: the most likely choice, or generated text. Targets are not read.

    Raises ArtifactError for a prompt of another backbone.
    """
    objective = prompt_objective(prompt, backbone)
    params, eval_set = prompt.params, make_eval_set(objective, task, examples)
    eval_sets = [replace(eval_set, together=copies_of(params))]
    losses = eval_set_losses(objective, params, eval_sets) if task.is_choice else [[]]
    return answered(objective, params, eval_sets, losses, generate=True)[0]


def prompt_objective(prompt: Prompt, backbone: Backbone) -> Answering:
    """The losses of a backbone that reads this prompt. Raises ArtifactError when it is another's."""
    header = prompt.header
    header.backbone.check(backbone.card, f"the prompt of {header.method}")
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    return objective_of(backbone, form)


def answered(
    objective: Answering,
    params: Params,
    eval_sets: Sequence[EvalSet],
    losses: Sequence[Sequence[Sequence[float]]],
    generate: bool,
) -> list[list[Prediction]]:
    """Predictions from the losses of choices; free text is generated, or left out."""
    free = [eval_set for eval_set in eval_sets if generate and not eval_set.task.is_choice]
    if several := [eval_set.task.name for eval_set in free if eval_set.together > 1]:
        raise DataError(
            f"{several[0]}: prompts that answer together average probabilities of choices; this is free text"
        )
    texts = iter(generated_texts(objective, params, free))
    out = []
    for eval_set, nll in zip(eval_sets, losses, strict=True):
        if eval_set.task.is_choice:
            out.append(ranked(eval_set, nll))
        else:
            out.append(written(eval_set, next(texts)) if generate else [])
    return out


def ranked(eval_set: EvalSet, nll: Sequence[Sequence[float]]) -> list[Prediction]:
    """Predictions of a choice exam from the summed NLL of every choice."""
    out = []
    for example, tokens, per_choice in zip(eval_set.examples, eval_set.tokens, nll, strict=True):
        best = min(range(len(per_choice)), key=per_choice.__getitem__)
        lengths = tuple(map(len, tokens.targets))
        out.append(Prediction(example.id, example.choices[best], best, tuple(per_choice), lengths))
    return out


def written(eval_set: EvalSet, texts: Sequence[str]) -> list[Prediction]:
    """Predictions of a free-text exam: the first line of what was generated."""
    return [
        Prediction(example.id, (text.strip().splitlines() or [""])[0].strip())
        for example, text in zip(eval_set.examples, texts, strict=True)
    ]


def right_answer_nll(eval_set: EvalSet, nll: Sequence[Sequence[float]]) -> float:
    """Mean NLL of the right answers: among the choices (normalised over them), or per token of free text."""
    total = 0.0
    for example, tokens, values in zip(eval_set.examples, eval_set.tokens, nll, strict=True):
        if eval_set.task.is_choice:
            total -= float(torch.log_softmax(-torch.tensor(values, dtype=torch.float64), 0)[example.label or 0])
        else:
            total += values[0] / len(tokens.targets[0])
    return total / len(eval_set.examples)


def eval_set_losses(objective: Answering, params: Params, eval_sets: Sequence[EvalSet]) -> list[list[list[float]]]:
    """Summed NLL of every target of every text of every exam; of copies that answer together, of their mean."""
    apart = [
        replace(eval_set, copy=eval_set.copy + c, together=1)
        for eval_set in eval_sets
        for c in range(eval_set.together)
    ]
    found = iter(copy_losses(objective, params, apart))
    return [averaged([next(found) for _ in range(eval_set.together)]) for eval_set in eval_sets]


def averaged(nll: Sequence[list[list[float]]]) -> list[list[float]]:
    """Minus the logarithm of the mean over copies of each choice's probability, normalised over a text's choices.

    >>> averaged([[[0.0, 9.0]]])
    [[0.0, 9.0]]
    """
    return nll[0] if len(nll) == 1 else [mean_probability(texts) for texts in zip(*nll, strict=True)]


def mean_probability(nll: Sequence[Sequence[float]]) -> list[float]:
    """The same for one text: one sequence of choices for each copy. Free text has nothing to be normalised over."""
    table = -torch.tensor(nll, dtype=torch.float64)
    logs = torch.log_softmax(table, dim=1) if table.shape[1] > 1 else table
    return (math.log(len(nll)) - torch.logsumexp(logs, dim=0)).tolist()


def copy_losses(objective: Answering, params: Params, eval_sets: Sequence[EvalSet]) -> list[list[list[float]]]:
    """Summed NLL of every target of every text of exams that one copy each answers."""
    flat = [(e, x) for e, eval_set in enumerate(eval_sets) for x in range(len(eval_set.tokens))]
    order = sorted(
        range(len(flat)), key=lambda i: (eval_sets[flat[i][0]].copy, len(eval_sets[flat[i][0]].tokens[flat[i][1]]))
    )
    out: list[list[list[float]]] = [[[] for _ in eval_set.tokens] for eval_set in eval_sets]
    for start in range(0, len(order), TEXTS_AT_ONCE):
        places = [flat[i] for i in order[start : start + TEXTS_AT_ONCE]]
        batch = collate(
            [eval_sets[e].tokens[x] for e, x in places],
            [eval_sets[e].copy for e, _ in places],
            [eval_sets[e].task_index for e, _ in places],
        )
        sums = batch_losses(objective, params, batch) * batch.target_lengths
        values = iter(sums.tolist())
        for e, x in places:
            out[e][x] = [next(values) for _ in eval_sets[e].tokens[x].targets]
    return out


def batch_losses(objective: Answering, params: Params, batch: Batch) -> Float[Tensor, " R"]:
    """Each row's loss in float64 on the CPU, the texts split over processes."""
    losses = torch.zeros(batch.rows, dtype=torch.float64)
    mine = own_texts(batch)
    if len(mine):
        losses[torch.isin(batch.text_index, mine)] = objective.losses(params, batch.take(mine)).cpu().double()
    add_up([losses])
    return losses


def generated_texts(objective: Answering, params: Params, eval_sets: Sequence[EvalSet]) -> list[list[str]]:
    """Greedy text after every text of every exam."""
    out = []
    for eval_set in eval_sets:
        batch = collate(
            eval_set.tokens, [eval_set.copy] * len(eval_set.tokens), [eval_set.task_index] * len(eval_set.tokens)
        )
        out.append(objective.generate(params, batch, eval_set.task.max_gen_toks))
    return out


def dev_scores(
    objective: Answering, eval_sets: Sequence[EvalSet], params: Params
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """What selection sees of each copy: its task's metric and its NLL. Free text is selected by NLL alone."""
    results = evaluate_requests(objective, params, eval_sets, generate=False)
    values = [m.scores.get(e.task.metrics[0], 0.0) for m, e in zip(results, eval_sets, strict=True)]
    return torch.tensor(values, dtype=torch.float64), torch.tensor([m.nll for m in results], dtype=torch.float64)
