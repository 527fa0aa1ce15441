"""promptprior evaluate: scores of a prompt on a task."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptprior.cli.output import format_table, score_lines, show
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, FORCE, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE, load_backbone
from promptprior.config.mapping import check_bounds, merge_settings
from promptprior.config.plan_file import check_output, plan_beside, write_outputs
from promptprior.config.training import LIMIT_BOUNDS, setting
from promptprior.errors import DataError, SpecError
from promptprior.untrusted import read_utf8

if TYPE_CHECKING:  # help must not wait for torch
    from promptprior.artifacts.header import Header
    from promptprior.tasks import Task


MOST_CLASSES = 30  # of a confusion matrix that is printed; the JSON has any


@dataclass(frozen=True)
class EvaluatePlan:
    """The settings of `promptprior evaluate`. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    target: str = setting("", "task: a name, file or folder; by default the one that the prompt was adapted to")
    input: Path | None = setting(
        None, "file of labelled rows (.jsonl, .csv, .json, .parquet) to score on, read as the task's own rows are"
    )
    split: Literal["train", "validation", "test"] = setting("test", "split to score on, without --input")
    limit: int | None = setting(None, "at most this many examples", **LIMIT_BOUNDS)
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    abstention: bool = setting(False, "also accuracy on the most confident tenth of answers, two tenths, … all")
    forgetting: Path | None = setting(
        None, "plain text (.txt): also the loss on it, in nats per token, behind the prompt and without it"
    )
    json: bool = setting(False, "print one JSON object instead of a table")
    output: Path | None = setting(None, "write the JSON object to this file as well")
    force: bool = setting(False, FORCE)

    def __post_init__(self) -> None:
        check_bounds(self)

    def run(self, dry_run: bool) -> None:
        """Score a prompt and print its scores."""
        from promptprior.artifacts.artifact import Prompt
        from promptprior.cli.common import ProgressMeter
        from promptprior.compare.progress import say_to_stderr
        from promptprior.evaluate import PromptRequest, abstention_tenths, answer_requests, forgetting
        from promptprior.files import write_json
        from promptprior.objectives.objective import copies_of
        from promptprior.preflight import check_lengths, length_of_prompt
        from promptprior.tasks.metrics import wilson_interval

        task, target, asked = self.scored_task()
        if self.output is not None:
            inputs = (self.prompt, self.input, task.path or target or None, self.data, self.backbone, self.forgetting)
            check_output(self.output, "evaluate", inputs, force=self.force)
        examples = task.split(self.split)[: self.limit]
        count, text = len(examples), "" if self.forgetting is None else read_utf8(self.forgetting)
        if self.abstention and not task.is_choice:
            raise DataError(f"task {task.name!r} is free text: abstention ranks answers by the probability of a choice")
        backbone = load_backbone(self)
        prompt = Prompt.from_pretrained(self.prompt, backbone.card)
        check_lengths(backbone, task, examples, length_of_prompt(prompt, backbone))
        taught = {name for card in prompt.header.tasks if card.role == "target" for name in card.example_ids}
        if seen := sum(example.id in taught for example in examples):
            say_to_stderr(f"warning: {seen} of the {count} {asked} taught this prompt or chose it")
        if dry_run:
            return print(f"score {self.prompt} on {count} {asked}, task {task.name}")
        passes = 1 if task.is_choice else 2  # free text is scored and generated
        meter = ProgressMeter(label=f"scoring {count} rows", total=passes * count * copies_of(prompt.params))
        [answers] = answer_requests(replace(backbone, meter=meter), [PromptRequest(prompt, task, examples)])
        results, confusion = answers.result, answers.confusion
        meter.display.close()
        report: dict[str, Any] = {
            "prompt": str(self.prompt),
            "task": task.name,
            **({"split": self.split} if self.input is None else {"input": str(self.input)}),
            "examples": count,
            "scores": dict(results.scores),
            "answer_nll": results.nll,
        }
        curve, lines = [], [f"{task.name}, {count} {asked}"]
        if "accuracy" in results.scores:
            report["accuracy_interval"] = wilson_interval(results.scores["accuracy"], count)
        if confusion:
            labels = list(examples[0].choices)
            report["confusion"] = {"labels": labels, "counts": confusion}
        if self.abstention:
            curve = abstention_tenths(examples, answers.predictions)
            report["abstention"] = [list(point) for point in curve]
        if self.forgetting is not None:
            forgot = forgetting(prompt, backbone, text)
            report["forgetting"] = {"text": str(self.forgetting), **asdict(forgot)}
        if self.output is not None:
            plan, writers = replace(self, target=target), {self.output: lambda p: write_json(p, report)}
            write_outputs(plan, plan_beside(self.output), "evaluate", writers)
        confident = {f"accuracy of the surest {share:.0%}": accuracy for share, accuracy in curve}
        lines.append(score_lines({**results.scores, **confident}, f"of {count} {asked}", count))
        if confusion and len(confusion) <= MOST_CLASSES:
            rows = [[name, *map(str, row)] for name, row in zip(labels, confusion, strict=True)]
            lines += ["", format_table(["right \\ answered", *labels], rows)]
        if self.forgetting is not None:
            lost = f"{forgot.behind_prompt:.4f} nats per token behind the prompt, {forgot.without:.4f} without"
            lines += ["", f"plain text: {lost}; {forgot.tokens} tokens of {forgot.passages} passages"]
        return show("\n".join(lines), report)

    def scored_task(self) -> "tuple[Task, str, str]":
        """The task whose split is scored, what loads it, and what its rows are called. Of rows of a file, the split
        that is asked for holds them all.

        Raises DataError and SpecError where there is no such task, or a row cannot be read as its rows are.
        """
        from promptprior.cli.common import task_to_read_as
        from promptprior.tasks.loading.new_rows import labelled_task
        from promptprior.tasks.loading.readers import read_data_file

        if self.input is None:
            task = load_target(self.prompt, self.target, self.data)
            return task, task.path or task.name, f"{self.split} rows"
        target, read_as = task_to_read_as(self.prompt, self.target, self.data)
        task = labelled_task(read_as, read_data_file(self.input), self.split)
        return task, target, f"rows of {self.input}"


def load_target(prompt: Path, target: str, data: Path | None) -> "Task":
    """The task to score a prompt on: the one that is named, else the prompt's own.

    Raises DataError where the prompt's own has changed, or another task has its name.
    """
    from promptprior.cli.common import target_of_prompt
    from promptprior.tasks import load_task

    if target:
        return load_task(target, data)
    name, card = target_of_prompt(prompt, data)
    if card.is_of_memory:
        raise SpecError(
            f"target (--target) is missing: {prompt} was adapted to rows in memory; give a file of labelled rows with "
            "the same columns (--input FILE)"
        )
    try:
        task = load_task(Path(name) if card.path == name else name, data)
    except (SpecError, DataError) as error:
        if card.path == name:
            raise
        raise type(error)(
            f"{error}; if it was a file or folder of your own, say where it is (--target FILE)"
        ) from error
    if task.fingerprint != card.fingerprint:
        raise DataError(
            f"task {task.name!r} ({task.origin}) is not the one that {prompt} was adapted to: its fingerprint is "
            f"{task.fingerprint}, not {card.fingerprint}. Its data changed, or another task has this name; to use it "
            f"anyway, name it (--target {name})"
        )
    return task


def settings_of_prompt(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with backbone and dtype of the prompt that is named; what is given wins."""
    from promptprior.cli.common import header_at

    header = header_at(given, "prompt")
    if header is None:
        return dict(given)
    return with_backbone_of(header, given)


def with_backbone_of(header: "Header", given: Mapping[str, object]) -> dict[str, object]:
    """The settings with backbone and dtype of a prompt; what is given wins."""
    dtype = str(header.settings.get("dtype", "auto")).removeprefix("torch.")
    return merge_settings(given, {"backbone": header.backbone.name, "dtype": dtype})


VERB = Verb(
    "evaluate",
    EvaluatePlan,
    EvaluatePlan.run,
    "promptprior evaluate --prompt runs/prompt --target adjective_polarity --split test",
    defaults=settings_of_prompt,
    is_parallel=True,
)
