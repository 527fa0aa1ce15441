"""Which scores of a study are no better than an answer that ignores the text: what the pages of docs/studies quote.

    python benchmarks/constant_answers.py DATA docs/studies/results/field.jsonl experiments/field.yaml

For every target with classes, the score of each constant answer on the test rows that the study used, then how many
cells score exactly like one of them or below the best of them, and how often a method kept its start, untrained.
Equal to a constant is strong evidence of a constant answer and no proof: rows keep no predictions.
"""

import sys
from pathlib import Path

from promptprior.config.yaml_file import load_yaml
from promptprior.report.results import read_rows
from promptprior.tasks import load_task
from promptprior.tasks.metrics import Prediction, metric, score


def main(data: Path, results: Path, config: Path) -> None:
    """Print the constants of every target, and a line of counts for every method."""
    plan = load_yaml(config)
    rows = [row for row in read_rows(results) if row.is_ok and row.score is not None]
    constants: dict[str, dict[str, float]] = {}
    for name in plan["targets"]:
        task = load_task(name, data)
        examples = task.split("test")[: next(row.n_test for row in rows if row.target == task.name)]
        if not task.is_choice or len({e.choices for e in examples}) > 1 or not metric(task.metrics[0]).higher_is_better:
            continue
        constants[task.name] = {}
        for label, choice in enumerate(examples[0].choices):
            answers = [Prediction(e.id, choice, label) for e in examples]
            constants[task.name][choice] = score(task, examples, answers)[task.metrics[0]]
        values = ", ".join(f"{choice} {value:.3f}" for choice, value in constants[task.name].items())
        print(f"{task.name} ({task.metrics[0]}, {len(examples)} rows): {values}")
    print(
        "method: cells with classes | exactly a constant | below the best constant | kept step 0, of all trained cells"
    )
    for method in [*dict.fromkeys(row.method for row in rows), ""]:
        own = [row for row in rows if method in ("", row.method)]
        known = [row for row in own if row.target in constants]
        equal = sum(any(abs(row.score - c) < 1e-6 for c in constants[row.target].values()) for row in known)
        below = sum(row.score < max(constants[row.target].values()) - 1e-6 for row in known)
        trained = [row for row in own if row.steps]
        kept = sum(row.best_step == 0 for row in trained)
        share = f"{kept} of {len(trained)} ({100 * kept / len(trained):.0f} %)" if trained else "-"
        print(f"{method or 'all'}: {len(known)} | {equal} | {below} | {share}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
