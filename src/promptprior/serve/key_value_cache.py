"""Keys and values of prompts, computed once and kept while there is room.

The engine needs no change for it: what the model caches of a prompt's tokens is a prompt of the form `prefix` that
answers as the tokens do (parameterisations/prefix.py). So a prompt is exchanged for its prefix before it is asked.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.parameterisations.prefix import prefix_form, prefix_start
from promptprior.parameterisations.registry import plain_settings

NEW_AT_ONCE = 8  # prompts of a batch whose keys and values are computed for it
IDLE = 60.0  # seconds without a request after which keys and values make room for others


@dataclass
class CachedPrefix:
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
    kept: dict[int, CachedPrefix] = field(default_factory=dict)  # by the identity of the prompt
    used_bytes: int = 0

    def cached(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prefixes that answer as prompts of tokens do; the prompts themselves where there is none, or no room.

        At most `NEW_AT_ONCE` are computed, so that a batch of strangers does not wait for all of them.
        """
        now, new, exchanged = time.monotonic(), 0, list[Prompt]()
        for prompt in prompts:
            header, tokens = prompt.header, prompt.params.get("prompt")
            if (found := self.kept.get(id(prompt))) is not None:
                found.used = now
                exchanged.append(found.prefix)
                continue
            exchanged.append(prompt)
            # An encoder reads no prefix, so the prompt of an encoder-decoder is not what its decoder caches of it
            is_plain = header.parameterisation == "direct" and not self.backbone.card.is_encoder_decoder
            if not is_plain or not self.most_bytes or new >= NEW_AT_ONCE or tokens is None or not tokens.shape[1]:
                continue
            try:
                form = prefix_form(self.backbone, tokens.shape[1]).plain
            except SpecError:  # a model whose cache is no plain keys and values
                self.most_bytes = 0
                continue
            size = tokens.shape[0] * tokens.shape[1] * form.width * self.backbone.frozen.prompt_dtype.itemsize
            idle = sorted(
                (k for k, each in self.kept.items() if now - each.used > IDLE), key=lambda k: self.kept[k].used
            )
            if self.used_bytes - sum(self.kept[key].size for key in idle) + size > self.most_bytes:
                continue
            while self.used_bytes + size > self.most_bytes:
                self.used_bytes -= self.kept.pop(idle.pop(0)).size
            params = {**prompt.params, "prompt": prefix_start(form, self.backbone, tokens)}  # [C, L, W]; a head stays
            header = replace(header, parameterisation=form.name, parameterisation_settings=plain_settings(form))
            exchanged[-1] = Prompt(header, params)
            self.kept[id(prompt)] = CachedPrefix(prompt, exchanged[-1], size, now)
            self.used_bytes, new = self.used_bytes + size, new + 1
        return exchanged
