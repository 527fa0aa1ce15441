"""A folder with all that an engine needs to be sent one prompt as vectors: vLLM, SGLang, TensorRT-LLM.

Every folder has prompt.json (what the client reads), client.py (one request, as the engine wants it), README.md, and

    vllm           prompt.pt, [L, D]; concat.jinja, a chat template that only concatenates; serve.sh
    sglang         vectors in prompt.json; serve.sh. Labels are scored at /v1/score
    tensorrt-llm   prompt_table.npy, [1, L, D] float32; ids from the end of the vocabulary on mean its rows

Clients depend on nothing of this library. tests/artifacts/test_engines.py has the engines' rules for what they decode.
"""

import hashlib
import io
import shlex
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from promptprior.artifacts.artifact import README, Prior, Prompt
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.artifacts.header import versions
from promptprior.artifacts.model_card import describe
from promptprior.backbone.added_tokens import TextFrame, check_holds
from promptprior.backbone.frozen import DTYPES
from promptprior.errors import ArtifactError, SpecError
from promptprior.files import replace_folder, write_bytes, write_json, write_text
from promptprior.notation import Float, Tensor

Engine = Literal["vllm", "sglang", "tensorrt-llm"]
MARKER = "<prompt_embeds>"  # what vLLM writes into a rendered chat for a part of vectors
BLOCK = 16  # tokens: the key-value blocks that vLLM reuses whole
CONCATENATE = "{%- for m in messages -%}{%- for p in m['content'] -%}{{ p['text'] }}{%- endfor -%}{%- endfor -%}"
NEEDS = {
    "vllm": "vLLM 0.21 or newer (parts of a chat message that hold vectors); not run here",
    "sglang": "SGLang with embedding overrides in /v1/score, and its radix cache off; not run here",
    "tensorrt-llm": "a TensorRT-LLM engine built with --max_prompt_embedding_table_size; not run here",
}


def encoded(prompt: Float[Tensor, "L D"], dtype: str) -> bytes:
    """A prompt as vLLM decodes it (after base64): torch.save of [L, D] in the type that the server computes in."""
    out = io.BytesIO()
    torch.save(prompt.to(getattr(torch, dtype)).contiguous().clone(), out)
    return out.getvalue()


def export_for_engine(
    artifact: Prior | Prompt, engine: Engine, folder: Path | str, name: str, backbone: str, dtype: str = "stored"
) -> list[str]:
    """Write a folder that serves one prompt with an engine; returns notes for whoever serves it.

    `name` is what clients call the prompt. `backbone` names the model; only its tokenizer and config are read, so
    whether it is the prompt's own is checked by its width alone. `dtype` is what the server computes in, by default
    what the weights are stored in. Raises ArtifactError for what is not one matrix, an encoder-decoder, a tokenizer
    that cannot be told apart from the vectors, and numbers that the dtype does not hold; nothing is written then.
    """
    folder, header = Path(folder), artifact.header
    prompt = single_prompt(artifact, f"prompt {name!r}")  # [L, D]
    if header.backbone.is_encoder_decoder:
        raise ArtifactError(
            f"prompt {name!r} is for {header.backbone.name}, an encoder-decoder, which {engine} sends no vectors: "
            "export as vocabulary or peft instead"
        )
    frame = TextFrame.of(backbone, MARKER)
    kind = frame.dtype if dtype == "stored" else dtype
    length, width = prompt.shape
    if width != frame.width:
        raise ArtifactError(
            f"prompt {name!r} has width {width}; {backbone} reads vectors of {frame.width}: name the backbone it was "
            "trained on (--backbone)"
        )
    if kind not in DTYPES:
        raise SpecError(f"dtype {kind!r} (--dtype): expected one of stored, {', '.join(DTYPES)}")
    check_holds(kind, name, prompt, "serve")
    record = {"name": name, "length": length, **asdict(frame), "dtype": kind, "engine": NEEDS[engine]}
    record |= {"backbone": asdict(header.backbone), "versions": versions()}
    serve, notes = "", []
    if engine == "vllm":
        serve = "vllm serve {model} --served-model-name {name} --dtype {dtype} --enable-prompt-embeds \\\n"
        serve += '    --chat-template "$(dirname "$0")/concat.jinja" --chat-template-content-format openai'
        if length % BLOCK:
            whole = length // BLOCK * BLOCK
            notes.append(
                f"vLLM keeps keys and values of whole blocks of {BLOCK} tokens: {whole} of the {length} are computed "
                f"once, {length - whole} again with every text; a length that is a multiple of {BLOCK} (--length) is "
                "better where prefix caching is on"
            )
    elif engine == "sglang":
        serve = "python -m sglang.launch_server --model-path {model} --served-model-name {name} --dtype {dtype} \\\n"
        serve += "    --disable-radix-cache"
        record["vectors"] = prompt.to(getattr(torch, kind)).float().tolist()
    else:  # not 0, which means a word; the same for the same vectors
        digest = hashlib.sha256(prompt.numpy().tobytes()).digest()
        record["extra_id"] = int.from_bytes(digest[:6], "big") + 1

    def write(target: Path) -> None:
        assets = files("promptprior.artifacts.engines").joinpath("assets")
        write_text(target / "client.py", assets.joinpath(f"{engine}_client.py.txt").read_text(encoding="utf-8"))
        write_json(target / "prompt.json", record)
        if serve:
            command = serve.format(model='"$MODEL"', name=shlex.quote(name), dtype=kind)
            model = f'[ -n "$MODEL" ] || MODEL={shlex.quote(frame.model)}'
            write_text(target / "serve.sh", f'#!/bin/sh\n# {NEEDS[engine]}\n{model}\nexec {command} "$@"\n')
            (target / "serve.sh").chmod(0o755)
        if engine == "vllm":
            write_bytes(target / "prompt.pt", encoded(prompt, kind))
            write_text(target / "concat.jinja", CONCATENATE)
        if engine == "tensorrt-llm":
            table = io.BytesIO()
            np.save(table, prompt[None].contiguous().numpy(), allow_pickle=False)
            write_bytes(target / "prompt_table.npy", table.getvalue())
        run = "sh serve.sh  # MODEL=... names another copy of the model\n" if serve else ""
        title, sections = describe(header)
        parts = [
            f"# {name}: {title}, for an engine that takes vectors",
            f"Needs {NEEDS[engine]}. The vectors stand before the text, its begin token included; a text is written as "
            f"the task renders it, without a chat template. The model is `{header.backbone.name}` "
            f"({header.backbone.architecture}, width {width}, fingerprint `{header.backbone.fingerprint}`), no other.",
            f'```bash\n{run}python client.py "the text"{" LABEL LABEL" if serve else ""}\n```',
            *sections,
        ]
        write_text(target / README, "\n\n".join(parts) + "\n")

    replace_folder(folder, write)
    return notes
