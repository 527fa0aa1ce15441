"""Keys and values of prompts, computed once and kept while there is room.

The engine needs no change for it: what the model caches of a prompt's tokens is a prompt of the form `prefix` that
answers as the tokens do (parameterisations/prefix.py). So a prompt is exchanged for its prefix before it is asked.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.parameterisations.prefix import prefix_form, prefix_start
from promptprior.parameterisations.registry import plain_settings

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

    @property
    def used_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(each.size for each in self.kept.values())

    def cached(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prefixes that answer as prompts of tokens do; the prompts themselves where there is none, or no room.

        Those that are new are read together. A batch that reads them as tokens would run as many through the model.
        """
        now, asked, new = time.monotonic(), 0, defaultdict[int, list[tuple[Prompt, int]]](list)  # by length, with sizes
        for key, prompt in {id(prompt): prompt for prompt in prompts}.items():
            if key in self.kept:
                self.kept[key].used = now
            elif (size := self.size_of(prompt)) and self.make_room(asked + size, now):
                asked += size
                new[prompt.params["prompt"].shape[1]].append((prompt, size))
        for length, some in new.items():
            form = prefix_form(self.backbone, length).plain
            tokens = [prompt.params["prompt"] for prompt, _ in some]  # [C, L, D] each
            read = prefix_start(form, self.backbone, torch.cat(tokens)).split([len(own) for own in tokens])  # [C, L, W]
            for (prompt, size), params in zip(some, read, strict=True):
                settings = plain_settings(form)
                header = replace(prompt.header, parameterisation=form.name, parameterisation_settings=settings)
                prefix = Prompt(header, {**prompt.params, "prompt": params})  # a head stays
                self.kept[id(prompt)] = CachedPrefix(prompt, prefix, size, now)
        return [self.kept[id(prompt)].prefix if id(prompt) in self.kept else prompt for prompt in prompts]

    def size_of(self, prompt: Prompt) -> int:
        """Bytes of a prompt's prefix; 0 for a prompt that has none.

        An encoder reads no prefix, so the prompt of an encoder-decoder is not what its decoder caches of it.
        """
        tokens = prompt.params.get("prompt")
        is_plain = prompt.header.parameterisation == "direct" and not self.backbone.card.is_encoder_decoder
        if not is_plain or not self.most_bytes or tokens is None or not tokens.shape[1]:
            return 0
        try:
            form = prefix_form(self.backbone, tokens.shape[1]).plain
        except SpecError:  # a model whose cache is no plain keys and values
            self.most_bytes = 0
            return 0
        return tokens.shape[0] * tokens.shape[1] * form.width * self.backbone.frozen.prompt_dtype.itemsize

    def make_room(self, size: int, now: float) -> bool:
        """Whether so many bytes fit, after prompts have gone that nobody asked for a minute, the longest idle first."""
        idle = sorted((k for k, each in self.kept.items() if now - each.used > IDLE), key=lambda k: self.kept[k].used)
        if self.used_bytes - sum(self.kept[key].size for key in idle) + size > self.most_bytes:
            return False
        while self.used_bytes + size > self.most_bytes:
            del self.kept[idle.pop(0)]
        return True
