"""Keys and values of prompts, computed once and kept while there is room.

The engine needs no change for it: what the model caches of a prompt's tokens is a prompt of the form `prefix` that
answers as the tokens do (parameterisations/prefix.py). So a prompt is exchanged for its prefix before it is asked.
"""

import time
from dataclasses import dataclass, field, replace

from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.parameterisations.prefix import prefix_form, prefix_start
from promptprior.parameterisations.registry import plain_settings

IDLE = 60.0  # seconds without a request after which keys and values make room for others


@dataclass
class Kept:
    """A prompt, its prefix of `size` bytes, and when it was last asked."""

    prompt: Prompt
    prefix: Prompt
    size: int
    used: float


@dataclass
class KeyValueCache:
    """At most `most_bytes` of keys and values. Full, it takes in another prompt only for ones that nobody has asked
    for a minute: a working set that does not fit would otherwise push itself out, and every prompt cost twice."""

    backbone: Backbone
    most_bytes: int
    kept: dict[int, Kept] = field(default_factory=dict)  # by the identity of the prompt
    used_bytes: int = 0

    def cached(self, prompt: Prompt) -> Prompt:
        """The prefix that answers as a prompt of tokens does; the prompt itself where there is none, or no room."""
        now, header, tokens = time.monotonic(), prompt.header, prompt.params.get("prompt")
        if (found := self.kept.get(id(prompt))) is not None:
            found.used = now
            return found.prefix
        # An encoder reads no prefix, so the prompt of an encoder-decoder is not the same as what its decoder caches
        is_plain = header.parameterisation == "direct" and not self.backbone.card.is_encoder_decoder
        if not is_plain or not self.most_bytes or tokens is None or not tokens.shape[1]:
            return prompt
        try:
            form = prefix_form(self.backbone, tokens.shape[1]).plain
        except SpecError:  # a model whose cache is no plain keys and values
            self.most_bytes = 0
            return prompt
        size = tokens.shape[0] * tokens.shape[1] * form.width * self.backbone.frozen.prompt_dtype.itemsize
        idle = [key for key, each in self.kept.items() if now - each.used > IDLE]
        idle_bytes = sum(self.kept[key].size for key in idle)
        if self.used_bytes - idle_bytes + size > self.most_bytes:
            return prompt
        for key in sorted(idle, key=lambda key: self.kept[key].used):
            if self.used_bytes + size <= self.most_bytes:
                break
            self.used_bytes -= self.kept.pop(key).size
        params = {**prompt.params, "prompt": prefix_start(form, self.backbone, tokens)}  # [C, L, W]; a head stays
        header = replace(header, parameterisation=form.name, parameterisation_settings=plain_settings(form))
        prefix = Prompt(header, params)
        self.kept[id(prompt)] = Kept(prompt, prefix, size, now)
        self.used_bytes += size
        return prefix
