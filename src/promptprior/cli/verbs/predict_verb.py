"""promptprior predict: answers of a prompt to the rows of a file or of standard input.

Rows are read, answered and written in blocks, so that a file may be larger than memory. It is read twice before the
first answer: once to find what is wrong with any row, once more with the backbone, to find texts that are too long.
"""

import csv
import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from promptprior.cli.output import show
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, Verb
from promptprior.cli.verbs.evaluate_verb import settings_of_prompt
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
from promptprior.config.plan_file import check_output, plan_beside, write_outputs
from promptprior.config.training import setting
from promptprior.errors import DataError, SpecError

if TYPE_CHECKING:  # help must not wait for torch
    from promptprior.tasks.loading.readers import Rows
    from promptprior.tasks.loading.spec import TaskSpec
    from promptprior.tasks.metrics import Prediction
    from promptprior.tasks.task import Example, Task

ANSWER, PROBABILITIES = "answer", "probabilities"
CSV, STDIN = ".csv", Path("-")
BLOCK = 2048  # rows in memory: as many as the engine sorts by length and answers together, a few times over


@dataclass(frozen=True)
class AnswerForm:
    """How answered rows are written: as CSV or as JSON lines, with which columns of the input.

    `choices` are those of all rows, which then have a column of their own in CSV; () where they differ by row, and for
    free text. `has_probabilities` says that answers are choices.
    """

    as_csv: bool
    columns: tuple[str, ...]
    choices: tuple[str, ...]
    has_probabilities: bool

    def text(self, rows: Sequence[Mapping[str, object]], answers: "Sequence[tuple[Example, Prediction] | None]") -> str:
        """Every row with its answer; none for a row that is no part of the task.

        An answer to a choice has the probability of each, normalised over them.
        """
        names, lines = self.input_names, []
        for row, answered in zip(rows, answers, strict=True):
            line: dict[str, Any] = {names[column]: value for column, value in row.items()}
            shares: dict[str, float] = {}
            if answered is not None and self.has_probabilities:
                shares = dict(zip(answered[0].choices, answered[1].probabilities, strict=True))
            if not self.as_csv:
                line[ANSWER] = None if answered is None else answered[1].text
                line |= {PROBABILITIES: shares} if shares else {}
            else:
                plain = (str, int, float, type(None))
                for column, value in line.items():
                    if not isinstance(value, plain):
                        line[column] = json.dumps(value, ensure_ascii=False, default=str)
                line[ANSWER] = "" if answered is None else answered[1].text
                if self.choices:
                    line |= {f"probability {choice}": f"{share:.6g}" for choice, share in shares.items()}
                elif self.has_probabilities:
                    line[PROBABILITIES] = json.dumps(shares, ensure_ascii=False) if shares else ""
            lines.append(line)
        if not self.as_csv:
            return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        stream = io.StringIO()
        self.writer(stream).writerows(lines)
        return stream.getvalue()

    @property
    def own_columns(self) -> tuple[str, ...]:
        """The columns that answers add."""
        if self.as_csv and self.choices:
            return ANSWER, *(f"probability {choice}" for choice in self.choices)
        return (ANSWER, PROBABILITIES) if self.has_probabilities else (ANSWER,)

    @property
    def input_names(self) -> dict[str, str]:
        """What each column of the input is called beside the answers: `answer` becomes `input answer`, and where that
        is taken, as in the output of another prompt, `input input answer`."""
        names: dict[str, str] = {}
        for column in self.columns:
            name = column
            while name in self.own_columns or (name != column and name in self.columns):
                name = f"input {name}"
            names[column] = name
        return names

    def writer(self, stream: io.StringIO) -> "csv.DictWriter[str]":
        """A CSV writer of all columns, the input's first."""
        return csv.DictWriter(stream, [*self.input_names.values(), *self.own_columns], restval="", lineterminator="\n")


@dataclass(frozen=True)
class PredictPlan:
    """The settings of `promptprior predict`. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt, PromptClassifier.save or PEFT wrote"})
    input: Path = field(
        metadata={"help": "file of rows (.jsonl, .csv, .json, .parquet), or - for standard input; no answers needed"}
    )
    output: Path | None = setting(
        None, "file for the rows with answers, .csv or .jsonl; by default they are printed, in the form of the input"
    )
    input_format: Literal["csv", "jsonl"] | None = setting(
        None, "what standard input holds, csv or jsonl; by default its first character says it"
    )
    target: str = setting("", "task that says how rows are read: a name, file or folder; by default the prompt's own")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    json: bool = setting(
        False, "print rows as JSON lines; with --output, print one JSON object that says what it holds"
    )
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Answer every row, in order; the file is whole or not there."""
        from promptprior.artifacts.artifact import Prompt
        from promptprior.cli.common import ProgressMeter, task_to_read_as
        from promptprior.evaluate import predict
        from promptprior.files import written_in_parts
        from promptprior.objectives.objective import copies_of
        from promptprior.preflight import check_lengths, length_of_prompt
        from promptprior.tasks.loading.new_rows import unlabelled_task
        from promptprior.tasks.loading.readers import stream_rows

        target, read_as = task_to_read_as(self.prompt, self.target, self.data)
        if self.output is not None:
            inputs = (self.input, self.prompt, target or None, self.data, self.backbone)
            check_output(self.output, "predict", inputs, force=self.force)
        with self.input_file() as (file, source):
            blocks = partial(stream_rows, file, BLOCK, source)
            form, count, row_count = self.survey(blocks(), read_as, file.suffix)
            backbone = load_backbone(self)
            prompt = Prompt.from_pretrained(self.prompt, backbone.card)
            length = length_of_prompt(prompt, backbone)
            for rows in blocks():
                task, indices = unlabelled_task(read_as, rows)
                places = [rows.place(i) for i in indices]
                check_lengths(backbone, task, task.examples["test"], length, places.__getitem__)
            if dry_run:
                where = self.output or "standard output"
                return print(f"answer {count} rows of {source} with {self.prompt}, to {where}")
            meter = ProgressMeter(label=f"answering {count} rows", total=count * copies_of(prompt.params))
            counted, counts = replace(backbone, meter=meter), Counter[str]()

            def answered() -> Iterator[str]:
                if form.as_csv:
                    stream = io.StringIO()
                    form.writer(stream).writeheader()
                    yield stream.getvalue()
                for rows in blocks():
                    task, indices = unlabelled_task(read_as, rows)
                    examples = task.examples["test"]
                    found = predict(prompt, task, counted, examples) if examples else []
                    by_row = dict(zip(indices, zip(examples, found, strict=True), strict=True))
                    if task.is_choice:
                        counts.update(answer.text for answer in found)
                    yield form.text(rows.values, [by_row.get(i) for i in range(len(rows))])
                meter.display.close()

            if self.output is None:
                for part in answered():
                    print(part, end="")
                return None
            output = self.output
            with written_in_parts(output, answered()) as written:
                writers = {output: lambda path: os.replace(written, path)}
                write_outputs(replace(self, target=target), plan_beside(output), "predict", writers)
        said = {"output": str(output), "rows": row_count, "answered": count, "answers": dict(sorted(counts.items()))}
        return show(str(output), said)

    @contextmanager
    def input_file(self) -> "Iterator[tuple[Path, str]]":
        """The file of rows and what errors call it; what comes from standard input is kept in a file meanwhile.

        Raises SpecError for standard input in several processes, and for a format of a file.
        """
        if self.input != STDIN:
            if self.input_format is not None:
                raise SpecError(f"input format {self.input_format} (--input-format): a file says it by its name")
            yield self.input, str(self.input)
            return
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise SpecError("input - (--input): several processes cannot share standard input; give a file")
        stdin = sys.stdin.buffer
        start = b""
        while not start.strip(b"\xef\xbb\xbf \t\r\n") and (more := stdin.readline()):
            start += more
        is_json = start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        suffix = f".{self.input_format}" if self.input_format else ".jsonl" if is_json else CSV
        with NamedTemporaryFile(suffix=suffix) as file:
            file.write(start)
            shutil.copyfileobj(stdin, file)
            file.flush()
            yield Path(file.name), "standard input"

    def survey(self, blocks: "Iterator[Rows]", read_as: "Task | TaskSpec", suffix: str) -> tuple[AnswerForm, int, int]:
        """How answers are written, and how many rows are part of the task, of how many.

        Raises DataError for the first row that cannot be read, and where no row is part of the task.
        """
        from promptprior.tasks.loading.new_rows import unlabelled_task

        columns, choices, count, row_count = dict[str, None](), dict[tuple[str, ...], None](), 0, 0
        for rows in blocks:
            task, indices = unlabelled_task(read_as, rows)
            count, row_count = count + len(indices), row_count + len(rows)
            columns |= dict.fromkeys(column for row in rows.values for column in row)
            choices |= dict.fromkeys(example.choices for example in task.examples["test"])
            choices = dict.fromkeys(islice(choices, 2))  # whether there is one set is all that is asked
        if not count:
            raise DataError(f"{self.input}: no row is part of the task {task.name!r}: doc_filter refuses all of them")
        wanted = suffix if self.output is None else self.output.suffix
        as_csv = (wanted if wanted in (CSV, ".jsonl", ".json") else suffix) == CSV
        as_csv = as_csv and not (self.json and self.output is None)
        one_set = next(iter(choices)) if len(choices) == 1 else ()
        return AnswerForm(as_csv, tuple(columns), one_set, task.is_choice), count, row_count


VERB = Verb(
    "predict",
    PredictPlan,
    PredictPlan.run,
    "promptprior predict --prompt runs/prompt --input rows.csv --output answers.csv",
    defaults=settings_of_prompt,
    is_parallel=True,
)
