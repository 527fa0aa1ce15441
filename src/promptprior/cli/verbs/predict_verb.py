"""promptprior predict: answers of a prompt to the rows of a file."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, Verb
from promptprior.cli.verbs.evaluate_verb import settings_of_prompt
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
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
        from promptprior.cli.common import ProgressMeter, target_of_prompt
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
        texts = len(examples) * copies_of(prompt.params)
        meter = ProgressMeter(label=f"answering {len(examples)} rows", total=texts)
        answers = predict(prompt, task, replace(backbone, meter=meter), examples)
        meter.display.close()
        by_row = {i: (x, answer) for i, x, answer in zip(indices, examples, answers, strict=True)}
        suffix = (self.output or self.input).suffix
        if suffix not in (CSV, ".jsonl", ".json"):
            suffix = self.input.suffix
        text = answers_text(rows.values, by_row, as_csv=suffix == CSV)
        if self.output is None:
            return print(text, end="")
        writers = {self.output: lambda path: write_text(path, text)}
        write_outputs(replace(self, target=target), plan_beside(self.output), "predict", writers)
        return print(self.output)


def answers_text(
    rows: Sequence[Mapping[str, object]], answered: "Mapping[int, tuple[Example, Prediction]]", as_csv: bool
) -> str:
    """Every row with its answer, as CSV or as a JSON object a line; none for a row that is no part of the task.

    An answer to a choice has the probability of each, normalised over them; in CSV they have a column each, where all
    rows have the same choices. An input's column `answer` becomes `input answer`.
    """
    answers: dict[int, dict[str, Any]] = {}
    for i, (example, prediction) in answered.items():
        answers[i] = {ANSWER: prediction.text}
        if prediction.choice_nll:
            answers[i][PROBABILITIES] = dict(zip(example.choices, prediction.probabilities, strict=True))
    if as_csv:
        is_one_set = len({tuple(answer.get(PROBABILITIES, ())) for answer in answers.values()}) <= 1
        for answer in answers.values():
            probabilities = answer.pop(PROBABILITIES, None)
            if is_one_set:
                answer.update({f"probability {choice}": f"{p:.6g}" for choice, p in (probabilities or {}).items()})
            else:
                answer[PROBABILITIES] = json.dumps(probabilities, ensure_ascii=False)
    own = dict.fromkeys(column for answer in answers.values() for column in answer)
    inputs = [{f"input {column}" if column in own else column: value for column, value in r.items()} for r in rows]
    if not as_csv:
        complete = ({**row, **answers.get(i, {ANSWER: None})} for i, row in enumerate(inputs))
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in complete)
    plain = (str, int, float, type(None))
    texts = [
        {c: v if isinstance(v, plain) else json.dumps(v, ensure_ascii=False, default=str) for c, v in row.items()}
        for row in inputs
    ]
    columns = dict.fromkeys(column for row in texts for column in row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*columns, *own], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **answers.get(i, {})} for i, row in enumerate(texts))
    return stream.getvalue()


VERB = Verb(
    "predict",
    PredictPlan,
    PredictPlan.run,
    "promptprior predict --prompt runs/prompt --input rows.csv --output answers.csv",
    defaults=settings_of_prompt,
    is_parallel=True,
)
