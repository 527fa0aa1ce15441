"""What can be wrong with settings, tasks and backbone together, found before the first step."""

from collections.abc import Callable, Sequence

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.blending import BLEND, blend_members
from promptprior.backbone import Backbone, ranking_tokens, training_tokens
from promptprior.config.choices import TestRows
from promptprior.config.training import Settings, Training
from promptprior.errors import DataError, SpecError
from promptprior.parameterisations.initial import start_prompt
from promptprior.parameterisations.parameterisation import AnsweringForm
from promptprior.parameterisations.prefix import prefix_form
from promptprior.parameterisations.registry import parameterisation
from promptprior.tasks.metrics import Prediction, score
from promptprior.tasks.sampling.draws import generator, select_test
from promptprior.tasks.task import Example, Task
from promptprior.untrusted import check_memory

SLOW_METRICS = ("rougeL", "bleu")  # of these a few examples are scored, of the others all
FEW = 16  # examples that are tokenised, or scored by a slow metric, at once
COPIES_KEPT = 6  # of each parameter: itself, its gradient, two moments, the best so far, and a checkpoint
BYTES_PER_ID = 24  # of each token of a batch: its id, its mask and its target, eight bytes each
BYTES_PER_TOKEN = 1000  # no tokenizer makes one token of more bytes; a text of megabytes is never tokenised


def check_start(backbone: Backbone, settings: Settings) -> None:
    """Raise SpecError when no prompt can start as the settings say: a prompt that is too long, a start text without
    tokens, a prefix in layers that the backbone does not have."""
    if settings.form == "prefix":
        prefix_form(backbone, settings.length, settings.layers)
    start_prompt(backbone, settings.start, settings.length, generator("preflight"), settings.start_text)


def free_width(backbone: Backbone, settings: Settings) -> int:
    """How many numbers a free prompt has at each of its positions."""
    if settings.form == "prefix":
        return prefix_form(backbone, settings.length, settings.layers).width
    return backbone.width


def check_training_memory(backbone: Backbone, settings: Settings, stage: Training, copies: int, longest: int) -> None:
    """Raise SpecError where `copies` of a prompt, and a batch of texts of `longest` bytes for each, exceed memory."""
    width = free_width(backbone, settings) * backbone.frozen.prompt_dtype.itemsize
    prompts = COPIES_KEPT * copies * settings.length * width
    batch = copies * stage.batch_size * (longest + settings.length) * BYTES_PER_ID
    what = f"{copies} copies of a prompt of {settings.length} tokens, with batches of {stage.batch_size} texts,"
    change = "lower --length, the batch size, or the number of learning rates"
    check_memory(prompts + batch, what, change, SpecError)


def check_metrics(task: Task, limit: int | None = None, rows: TestRows = "first") -> None:
    """Raise SpecError or DataError when a metric of the task does not fit its test rows, by scoring right answers."""
    slow = any(name in SLOW_METRICS for name in task.metrics)
    examples = task.split("test")[:FEW] if slow else select_test(task, limit, rows)
    right = []
    for example in examples:
        nll = tuple(float(choice != example.label) for choice in range(len(example.choices)))
        lengths = (1,) * len(example.choices)
        right.append(Prediction(example.id, example.target, example.label, nll, lengths))
    try:
        score(task, examples, right)
    except (SpecError, DataError) as error:
        raise type(error)(f"{error} (metric_list of {task.origin or task.name}: {', '.join(task.metrics)})") from error


def check_lengths(
    backbone: Backbone,
    task: Task,
    examples: Sequence[Example],
    prompt_length: int,
    place: Callable[[int], str] | None = None,
) -> None:
    """Raise DataError for the first example that does not fit into the backbone's context with the prompt and answer.

    `place` says where the example of an index stands; by default its id does. T5's relative positions have no end.
    """
    frozen = backbone.frozen
    config, is_encoder_decoder = frozen.model.config.get_text_config(), frozen.card.is_encoder_decoder
    context = frozen.context
    if context is None or (is_encoder_decoder and getattr(config, "max_position_embeddings", None) is None):
        return
    generated = 0 if task.is_choice or is_encoder_decoder else task.max_gen_toks

    def refuse(index: int, tokens: str) -> None:
        example = examples[index]
        where = f"example {example.id!r}" if place is None else place(index)
        answer = f" and {generated} generated (max_gen_toks)" if generated else " and the answer"
        raise DataError(
            f"task {task.name!r}, {where} ({example.text[:40]!r}…): {tokens} tokens with the prompt's {prompt_length}"
            f"{answer} do not fit into the {context} of {frozen.card.name}; shorten the text or leave it out, or take "
            "a backbone with a longer context (--backbone)"
        )

    suspects = []
    for index, example in enumerate(examples):
        answers = example.choices or (example.target,)
        size = len(example.text.encode(errors="replace")) + max(len(a.encode(errors="replace")) for a in answers)
        if size > BYTES_PER_TOKEN * context:
            refuse(index, f"{size:,} bytes, more than {context}")
        if prompt_length + generated + 2 * size + FEW > context:  # tokens are at least a byte, but for normalisation
            suspects.append(index)
    encode = ranking_tokens if task.is_choice else training_tokens
    for start in range(0, len(suspects), FEW):
        few = suspects[start : start + FEW]
        for index, tokens in zip(few, encode(backbone, task, [examples[i] for i in few]), strict=True):
            answer = 0 if is_encoder_decoder else max(generated, *map(len, tokens.targets))
            if (total := prompt_length + len(tokens.text) + answer) > context:
                refuse(index, f"{total:,}")


def length_of_prompt(prompt: Prompt, backbone: Backbone) -> int:
    """How many tokens, or positions, a prompt puts before each text; of a blend those of its longest member."""
    if prompt.header.parameterisation == BLEND:
        return max(length_of_prompt(member, backbone) for member in blend_members(prompt))
    form = parameterisation(prompt.header.parameterisation, prompt.header.parameterisation_settings, backbone)
    return 0 if isinstance(form, AnsweringForm) else form.length
