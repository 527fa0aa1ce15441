"""Honest scores of prompts: choices are ranked by their likelihood, free text is generated, metrics are the task's own.

Everything is batched over copies: the dev sets of all episodes, or the test sets of all targets, are one exam paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.backbone import Backbone, own_texts, ranking_tokens, training_tokens
from promptprior.errors import DataError
from promptprior.metrics import Prediction, score
from promptprior.notation import Float, Params, Tensor
from promptprior.processes import add_up
from promptprior.prompts.artifact import Prompt
from promptprior.prompts.parameterisation import parameterisation
from promptprior.rules.objective import copies_of
from promptprior.rules.weights import Answering, objective_of
from promptprior.tasks.batch import Batch, Tokens, collate
from promptprior.tasks.task import Example, Split, Task

TEXTS_AT_ONCE = 512  # texts collated together; the engine cuts them further to fit its memory


@dataclass(frozen=True)
class Exam:
    """Examples of a task that one copy of the parameters answers. `tokens` hold every choice, or the right answer.

    `together` copies, from `copy` on, answer by the mean of their probabilities: a posterior predictive.
    """

    task: Task
    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    copy: int = 0
    task_index: int = 0
    together: int = 1


def make_exam(
    objective: Answering, task: Task, examples: Sequence[Example], copy: int = 0, task_index: int = 0
) -> Exam:
    """An exam, tokenised once."""
    encode = ranking_tokens if task.is_choice else training_tokens
    return Exam(task, examples, encode(objective.backbone, task, examples), copy, task_index)


@dataclass(frozen=True)
class Marks:
    """What an exam came to: the task's metrics, and the mean loss that selection falls back on (nats)."""

    scores: dict[str, float]
    nll: float


@torch.no_grad()
def mark(objective: Answering, params: Params, exams: Sequence[Exam], generate: bool = True) -> list[Marks]:
    """Scores of all exams. Without `generate`, free-text exams have no scores, only their NLL."""
    losses = exam_losses(objective, params, exams)
    answers = answered(objective, params, exams, losses, generate)
    return [
        Marks(score(e.task, e.examples, p) if p else {}, right_answer_nll(e, nll))
        for e, nll, p in zip(exams, losses, answers, strict=True)
    ]


def evaluate(prompt: Prompt, task: Task, backbone: Backbone, split: Split = "test", limit: int | None = None) -> Marks:
    """Scores of a prompt on a split of a task (its first `limit` examples).

    Raises ArtifactError for a prompt of another backbone, DataError when the task has no such split.
    """
    objective = prompt_objective(prompt, backbone)
    exam = make_exam(objective, task, task.split(split)[:limit])
    return mark(objective, prompt.params, [replace(exam, together=copies_of(prompt.params))])[0]


@torch.no_grad()
def predict(prompt: Prompt, task: Task, backbone: Backbone, examples: Sequence[Example]) -> list[Prediction]:
    """What a prompt answers to examples of a task: the most likely choice, or generated text. Targets are not read.

    Raises ArtifactError for a prompt of another backbone.
    """
    objective = prompt_objective(prompt, backbone)
    params, exam = prompt.params, make_exam(objective, task, examples)
    exams = [replace(exam, together=copies_of(params))]
    losses = exam_losses(objective, params, exams) if task.is_choice else [[]]
    return answered(objective, params, exams, losses, generate=True)[0]


def prompt_objective(prompt: Prompt, backbone: Backbone) -> Answering:
    """The losses of a backbone that reads this prompt. Raises ArtifactError when it is another's."""
    header = prompt.header
    header.backbone.check(backbone.card, f"the prompt of {header.method}")
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    return objective_of(backbone, form)


def answered(
    objective: Answering,
    params: Params,
    exams: Sequence[Exam],
    losses: Sequence[Sequence[Sequence[float]]],
    generate: bool,
) -> list[list[Prediction]]:
    """Predictions from the losses of choices; free text is generated, or left out."""
    free = [exam for exam in exams if generate and not exam.task.is_choice]
    if several := [exam.task.name for exam in free if exam.together > 1]:
        raise DataError(
            f"{several[0]}: prompts that answer together average probabilities of choices; this is free text"
        )
    texts = iter(generated_texts(objective, params, free))
    out = []
    for exam, nll in zip(exams, losses, strict=True):
        if exam.task.is_choice:
            out.append(ranked(exam, nll))
        else:
            out.append(written(exam, next(texts)) if generate else [])
    return out


def ranked(exam: Exam, nll: Sequence[Sequence[float]]) -> list[Prediction]:
    """Predictions of a choice exam from the summed NLL of every choice."""
    out = []
    for example, tokens, per_choice in zip(exam.examples, exam.tokens, nll, strict=True):
        best = min(range(len(per_choice)), key=per_choice.__getitem__)
        lengths = tuple(map(len, tokens.targets))
        out.append(Prediction(example.id, example.choices[best], best, tuple(per_choice), lengths))
    return out


def written(exam: Exam, texts: Sequence[str]) -> list[Prediction]:
    """Predictions of a free-text exam: the first line of what was generated."""
    return [
        Prediction(example.id, (text.strip().splitlines() or [""])[0].strip())
        for example, text in zip(exam.examples, texts, strict=True)
    ]


def right_answer_nll(exam: Exam, nll: Sequence[Sequence[float]]) -> float:
    """Mean NLL of the right answers: among the choices (normalised over them), or per token of free text."""
    total = 0.0
    for example, tokens, values in zip(exam.examples, exam.tokens, nll, strict=True):
        if exam.task.is_choice:
            total -= float(torch.log_softmax(-torch.tensor(values, dtype=torch.float64), 0)[example.label or 0])
        else:
            total += values[0] / len(tokens.targets[0])
    return total / len(exam.examples)


def exam_losses(objective: Answering, params: Params, exams: Sequence[Exam]) -> list[list[list[float]]]:
    """Summed NLL of every target of every text of every exam; of copies that answer together, of their mean."""
    apart = [replace(exam, copy=exam.copy + c, together=1) for exam in exams for c in range(exam.together)]
    found = iter(copy_losses(objective, params, apart))
    return [averaged([next(found) for _ in range(exam.together)]) for exam in exams]


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


def copy_losses(objective: Answering, params: Params, exams: Sequence[Exam]) -> list[list[list[float]]]:
    """Summed NLL of every target of every text of exams that one copy each answers."""
    flat = [(e, x) for e, exam in enumerate(exams) for x in range(len(exam.tokens))]
    order = sorted(range(len(flat)), key=lambda i: (exams[flat[i][0]].copy, len(exams[flat[i][0]].tokens[flat[i][1]])))
    out: list[list[list[float]]] = [[[] for _ in exam.tokens] for exam in exams]
    for start in range(0, len(order), TEXTS_AT_ONCE):
        places = [flat[i] for i in order[start : start + TEXTS_AT_ONCE]]
        batch = collate(
            [exams[e].tokens[x] for e, x in places],
            [exams[e].copy for e, _ in places],
            [exams[e].task_index for e, _ in places],
        )
        sums = batch_losses(objective, params, batch) * batch.target_lengths
        values = iter(sums.tolist())
        for e, x in places:
            out[e][x] = [next(values) for _ in exams[e].tokens[x].targets]
    return out


def batch_losses(objective: Answering, params: Params, batch: Batch) -> Float[Tensor, " R"]:
    """Each row's loss in float64 on the CPU, the texts split over processes."""
    losses = torch.zeros(batch.rows, dtype=torch.float64)
    mine = own_texts(batch)
    if len(mine):
        losses[torch.isin(batch.text_index, mine)] = objective.losses(params, batch.take(mine)).cpu().double()
    add_up([losses])
    return losses


def generated_texts(objective: Answering, params: Params, exams: Sequence[Exam]) -> list[list[str]]:
    """Greedy text after every text of every exam."""
    out = []
    for exam in exams:
        batch = collate(exam.tokens, [exam.copy] * len(exam.tokens), [exam.task_index] * len(exam.tokens))
        out.append(objective.generate(params, batch, exam.task.max_gen_toks))
    return out


def dev_scores(
    objective: Answering, exams: Sequence[Exam], params: Params
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """What selection sees of each copy: its task's metric and its NLL. Free text is selected by NLL alone."""
    marks = mark(objective, params, exams, generate=False)
    values = [m.scores.get(e.task.metrics[0], 0.0) for m, e in zip(marks, exams, strict=True)]
    return torch.tensor(values, dtype=torch.float64), torch.tensor([m.nll for m in marks], dtype=torch.float64)
