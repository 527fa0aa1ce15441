"""promptprior predict: answers of a prompt to the rows of a file."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, Verb
from promptprior.cli.verbs.evaluate_verb import settings_of_prompt
from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.plan_file import check_output, plan_beside, write_outputs
from promptprior.config.training import setting

if TYPE_CHECKING:  # help must not wait for torch
    from promptprior.tasks.metrics import Prediction
    from promptprior.tasks.task import Example

ANSWER, PROBABILITIES = "answer", "probabilities"
CSV = ".csv"


@dataclass(frozen=True)
class PredictPlan:
    """The settings of `promptprior predict`. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    input: Path = field(metadata={"help": "file of rows (.jsonl, .csv, .json, .parquet); they need no answers"})
    output: Path | None = setting(
        None, "file for the rows with answers, .csv or .jsonl; by default they are printed, in the form of the input"
    )
    target: str = setting("", "task that says how rows are read: a name, file or folder; by default the prompt's own")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Answer every row, in order; the file is whole or not there."""
        from promptprior.artifacts.artifact import Prompt
        from promptprior.cli.common import ProgressMeter, load_backbone, target_of_prompt
        from promptprior.evaluate import predict
        from promptprior.files import write_text
        from promptprior.objectives.objective import copies_of
        from promptprior.preflight import check_lengths, length_of_prompt
        from promptprior.tasks.loading.readers import read_data_file
        from promptprior.tasks.loading.unlabelled import unlabelled_task

        target = self.target or target_of_prompt(self.prompt, self.data)[0]
        if self.output is not None:
            inputs = (self.input, self.prompt, target, self.data, self.backbone)
            check_output(self.output, "predict", inputs, force=self.force)
        rows = read_data_file(self.input)
        task, indices = unlabelled_task(target, rows, self.data)
        examples = task.split("test")
        backbone = load_backbone(self)
        prompt = Prompt.from_pretrained(self.prompt, backbone.card)
        check_lengths(backbone, task, examples, length_of_prompt(prompt), lambda i: rows.place(indices[i]))
        if dry_run:
            place = self.output or "standard output"
            return print(f"answer {len(examples)} rows of {self.input} with {self.prompt}, to {place}")
        meter = ProgressMeter(f"answering {len(examples)} rows", len(examples) * copies_of(prompt.params))
        answers = predict(prompt, task, replace(backbone, meter=meter), examples)
        meter.display.close()
        by_row = {i: with_probabilities(x, a) for i, x, a in zip(indices, examples, answers, strict=True)}
        suffix = (self.output or self.input).suffix
        if suffix not in (CSV, ".jsonl", ".json"):
            suffix = self.input.suffix
        text = (csv_text if suffix == CSV else jsonl_text)(rows.values, by_row)
        if self.output is None:
            return print(text, end="")
        writers = {self.output: lambda path: write_text(path, text)}
        write_outputs(replace(self, target=target), plan_beside(self.output), "predict", writers)
        return print(self.output)


def with_probabilities(example: "Example", prediction: "Prediction") -> dict[str, Any]:
    """An answer; for a choice also the probability of each, normalised over them."""
    if not prediction.choice_nll:
        return {ANSWER: prediction.text}
    least = min(prediction.choice_nll)
    total = least - log(sum(exp(least - nll) for nll in prediction.choice_nll))  # minus the log of the sum
    shares = [exp(total - nll) for nll in prediction.choice_nll]
    return {ANSWER: prediction.text, PROBABILITIES: dict(zip(example.choices, shares, strict=True))}


def jsonl_text(rows: Sequence[Mapping[str, object]], answers: Mapping[int, Mapping[str, Any]]) -> str:
    """Every row with its answer, null for a row that is no part of the task, as a JSON object a line."""
    own = {column for answer in answers.values() for column in answer}
    complete = ({**renamed(row, own), **answers.get(i, {ANSWER: None})} for i, row in enumerate(rows))
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in complete)


def csv_text(rows: Sequence[Mapping[str, object]], answers: Mapping[int, Mapping[str, Any]]) -> str:
    """Every row with its answer as CSV; probabilities have a column for each choice, where all rows have the same."""
    choices = {tuple(answer.get(PROBABILITIES, ())) for answer in answers.values()}
    flat: dict[int, dict[str, Any]] = {}
    for i, answer in answers.items():
        flat[i] = {ANSWER: answer[ANSWER]}
        if len(choices) > 1:
            flat[i][PROBABILITIES] = json.dumps(answer.get(PROBABILITIES), ensure_ascii=False)
        else:
            flat[i] |= {f"probability {choice}": f"{p:.6g}" for choice, p in answer.get(PROBABILITIES, {}).items()}
    own = dict.fromkeys(column for answer in flat.values() for column in answer)
    plain = (str, int, float, type(None))
    texts = [
        {
            column: value if isinstance(value, plain) else json.dumps(value, ensure_ascii=False, default=str)
            for column, value in renamed(row, own).items()
        }
        for row in rows
    ]
    columns = dict.fromkeys(column for row in texts for column in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*columns, *own], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **flat.get(i, {})} for i, row in enumerate(texts))
    return stream.getvalue()


def renamed(row: Mapping[str, object], own: Mapping[str, object] | set[str]) -> dict[str, object]:
    """A row whose columns do not collide with those of answers: an input's `answer` becomes `input answer`."""
    return {f"input {column}" if column in own else column: value for column, value in row.items()}


VERB = Verb(
    "predict",
    PredictPlan,
    PredictPlan.run,
    "promptprior predict --prompt runs/prompt --input rows.csv --output answers.csv",
    defaults=settings_of_prompt,
    is_parallel=True,
)
