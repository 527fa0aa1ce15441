"""A client of vLLM for prompts that depend on the text (banks, mixtures), which no folder or string can hold.

The prompt of each text is computed here, on a backbone of our own, and sent as vectors in front of the text; the server
answers. Any number of such clients, for any prompts, may use one server. It costs one pass of our backbone over the
text where the form reads its states, and the vectors on the wire (2 L D bytes in base64, for bfloat16).
"""

import base64
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.engines.engine_folder import MARKER, encoded
from promptprior.backbone import Backbone
from promptprior.backbone.added_tokens import TextFrame
from promptprior.errors import ArtifactError
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.parameterisation import AnsweringForm, Masking, Offsetting
from promptprior.parameterisations.prefix import Prefix
from promptprior.parameterisations.registry import parameterisation
from promptprior.tasks.sampling.batch import collate


@dataclass(frozen=True)
class TextClient:
    """Asks the vLLM server at `server`, started as `export --format vllm` says for any prompt of the same backbone.

    `model` is its --served-model-name, `dtype` what it computes in.
    """

    prompt: Prompt
    backbone: Backbone
    model: str
    server: str = "http://localhost:8000"
    dtype: str = "bfloat16"

    @cached_property
    def begin(self) -> str:
        """What the model's tokenizer puts before every text; it stands between vectors and text."""
        return TextFrame.of(self.backbone.card.name, MARKER).begin

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Float[Tensor, "X L D"]:
        """The prompt of each text. Raises ArtifactError for what is more, or other, than vectors before a text."""
        header = self.prompt.header
        header.backbone.check(self.backbone.card, f"the prompt of {header.method}")
        form = parameterisation(header.parameterisation, header.parameterisation_settings, self.backbone)
        copies = next(iter(self.prompt.params.values())).shape[0]
        if isinstance(form, AnsweringForm | Masking | Offsetting | Prefix) or header.head or copies != 1:
            raise ArtifactError(
                f"a prompt of {header.method} ({header.parameterisation}) with {header.head or 'no'} head and {copies} "
                "copies is more than vectors before a text: it is served by promptprior itself"
            )
        batch = collate(self.backbone.tokens(list(texts), [[""] for _ in texts]))
        prompts, index = form.prompts(self.prompt.params, batch)
        assert isinstance(prompts, torch.Tensor)  # keys and values are a prefix's
        return prompts[index].float()

    def request_body(self, text: str, labels: Sequence[str] = (), max_tokens: int = 16) -> dict[str, Any]:
        """The JSON of one chat request: the text's vectors, [L, D] in base64, and the text; with `labels` the server
        chooses one of them."""
        data = base64.b64encode(encoded(self.prompts([text])[0], self.dtype)).decode()
        content = [{"type": "prompt_embeds", "data": data}, {"type": "text", "text": self.begin + text.rstrip()}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
        body |= {"temperature": 0, "add_generation_prompt": False, "add_special_tokens": False}
        return body | ({"structured_outputs": {"choice": [" " + label for label in labels]}} if labels else {})

    def ask(self, text: str, labels: Sequence[str] = (), max_tokens: int = 16) -> str:
        """The server's answer to a text."""
        data = json.dumps(self.request_body(text, labels, max_tokens)).encode()
        request = urllib.request.Request(
            f"{self.server}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)["choices"][0]["message"]["content"].strip()
