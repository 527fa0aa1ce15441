"""The model card of an artifact: a short README.md that says what it is and how to load it."""

import re
from collections.abc import Iterator, Mapping, Sequence

from promptprior.artifacts.header import Header
from promptprior.backbone.added_tokens import BakedPrompt
from promptprior.backbone.identity import BackboneCard
from promptprior.notation import Params

AUTO_CLASS = {False: "AutoModelForCausalLM", True: "AutoModelForSeq2SeqLM"}  # by is_encoder_decoder
READING = {
    "npy": '```python\nimport numpy\n\nprompt = numpy.load("this-folder/prompt.npy")  # float32 [L, D]\n```\n\n'
    "It goes before the embeddings of the text, a begin token included.",
    "safetensors": "```python\nfrom safetensors.torch import load_file\n\n"
    'prompt = load_file("this-folder/prompt.safetensors")["prompt"]  # float32 [L, D]\n```\n\n'
    "It goes before the embeddings of the text, a begin token included.",
}
OWN_HEAD = "nothing for greedy decoding, and for sampling at high temperature a logit bias that forbids the new ids."
TIED = "a logit bias that forbids the new ids, always: the head is tied, so their logits are arbitrary."
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(header: Header, params: Params, is_adapter: bool) -> str:
    """The text of README.md; `is_adapter` says whether PEFT can load the folder too."""
    parts = [
        front_matter(header, is_adapter),
        f"# {title(header)}\n\n{summary(header, params)}",
        "## Load it\n\n" + load_with_promptprior(header),
        load_with_peft(header) if is_adapter else "PEFT has no form for this parameterisation.",
        *origins(header),
    ]
    return "\n\n".join(parts) + "\n"


def export_card(header: Header, params: Params, form: str) -> str:
    """The text of README.md beside an exported prompt, in one of the forms of READING or "peft"."""
    reading = load_with_peft(header) if form == "peft" else READING[form]
    parts = [front_matter(header, form == "peft"), f"# {title(header)}\n\n{summary(header, params)}"]
    return "\n\n".join([*parts, f"## Load it\n\n{reading}", *origins(header)]) + "\n"


def baked_card(
    backbone: BackboneCard, headers: Mapping[str, Header], baked: Sequence[BakedPrompt], keep_tied: bool
) -> str:
    """The text of README.md beside a model with prompts in its vocabulary."""
    auto = AUTO_CLASS[backbone.is_encoder_decoder]
    parts = [
        f"# {backbone.name} with soft prompts in its vocabulary",
        f"{backbone.architecture}, unchanged but for {sum(one.length for one in baked)} new tokens. To use a prompt, "
        "write its string right before your text, nothing between them; the strings are in `promptprior_prompts.json`.",
        f"```python\nimport json\n\nfrom transformers import AutoTokenizer, {auto}\n\n"
        f'model = {auto}.from_pretrained("this-folder", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")\n'
        f'prompt = json.load(open("this-folder/promptprior_prompts.json"))["{baked[0].name}"]["text"]\n'
        'inputs = tokenizer(prompt + "your text", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))\n```",
        "Without a prompt, a text needs its begin token written out where the original tokenizer added one. Engines "
        "other than transformers ignore `suppress_tokens`: they need " + (TIED if keep_tied else OWN_HEAD),
    ]
    for one in baked:
        parts.append(f"## {one.name}: {title(headers[one.name])}, {one.length} tokens")
        parts += [part.replace("## ", "### ", 1) for part in origins(headers[one.name])]
    return "\n\n".join(parts) + "\n"


def origins(header: Header) -> list[str]:
    """What it was learned from, how good it was, and whose terms hold."""
    return [
        "## Tasks\n\n" + task_table(header),
        "## Scores\n\n" + score_list(header),
        "## Licence\n\nThe numbers here were learned from the tasks above and from the backbone: what their "
        "licences ask for holds for this folder too.",
    ]


def front_matter(header: Header, is_adapter: bool) -> str:
    """What the Hub reads; a local path is no base model there."""
    base = [f"base_model: {header.backbone.name}"] if HUB_ID.fullmatch(header.backbone.name) else []
    library = "peft" if is_adapter else "promptprior"
    return "\n".join(["---", *base, f"library_name: {library}", "tags:", "- soft-prompt", "- promptprior", "---"])


def title(header: Header) -> str:
    """One line: what it is, of which method, for what."""
    targets = [task.name for task in header.tasks if task.role == "target"]
    aim = f" for {', '.join(targets)}" if targets else ""
    return f"{header.method} {header.kind}{aim}"


def summary(header: Header, params: Params) -> str:
    """One paragraph: parameterisation, shapes, backbone."""
    backbone = header.backbone
    return (
        f"A {header.kind} ({header.parameterisation}: {shape_text(params)}) for the frozen backbone "
        f"`{backbone.name}` ({backbone.architecture}, width {backbone.width}, fingerprint "
        f"`{backbone.fingerprint}`). It works with no other backbone."
    )


def shape_text(params: Params) -> str:
    """Every tensor with its shape."""
    return ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in sorted(params.items()))


def load_with_promptprior(header: Header) -> str:
    """Two lines of Python."""
    name = header.kind.capitalize()
    return f'```python\nfrom promptprior import {name}\n\n{header.kind} = {name}.from_pretrained("this-folder")\n```'


def load_with_peft(header: Header) -> str:
    """The same with PEFT alone."""
    auto = AUTO_CLASS[header.backbone.is_encoder_decoder]
    return (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{header.backbone.name}")\n'
        'model = PeftModel.from_pretrained(model, "this-folder")\n```'
    )


def task_table(header: Header) -> str:
    """The tasks with role, version and number of examples."""
    if not header.tasks:
        return "None recorded."
    rows = [
        f"| {task.name} | {task.role} | {task.version} | {len(task.example_ids) or 'all of train'} |"
        for task in header.tasks
    ]
    return "\n".join(["| task | role | version | examples |", "|---|---|---|---|", *rows])


def score_list(header: Header) -> str:
    """The scores, nested names joined by dots."""
    lines = [f"- {name}: {value}" for name, value in flat(header.scores)]
    return "\n".join(lines) or "None recorded."


def flat(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """A nested mapping as dotted names and values, sorted.

    >>> list(flat({"b": {"y": 1, "x": 2}, "a": 3}))
    [('a', 3), ('b.x', 2), ('b.y', 1)]
    """
    for name in sorted(mapping):
        value = mapping[name]
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
