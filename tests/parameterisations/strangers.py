"""Parameterisations as another package would write them, and the entry points that register them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from promptprior import plugins
from promptprior.backbone import Backbone
from promptprior.notation import Float, Params, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class PrefixAnswers:
    """Texts after a prefix that the model computes anew for each of them."""

    backbone: Backbone
    length: int

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " R"]:
        return self.backbone.losses(params["prefix"][None], batch.reading(torch.zeros_like(batch.prompt_index)))

    def generate(self, params: Mapping[str, Tensor], batch: Batch, max_new_tokens: int) -> list[str]:
        read = batch.reading(torch.zeros_like(batch.prompt_index))
        return self.backbone.generate(params["prefix"][None], read, max_new_tokens, 1, True)


@dataclass(frozen=True)
class Prefix:
    """params: "prefix" Float[C, tokens, D]."""

    tokens: int
    name: str = "own_prefix"
    holds: ClassVar[str] = "a prefix of keys and values"

    def answers(self, backbone: Backbone) -> PrefixAnswers:
        return PrefixAnswers(backbone, self.tokens)


@dataclass(frozen=True)
class Silent:
    """A form that answers by itself and does not say what it holds."""

    name: str = "silent"

    def answers(self, backbone: Backbone) -> PrefixAnswers:
        return PrefixAnswers(backbone, 0)


@dataclass(frozen=True)
class Odd:
    """A parameterisation that returns what it is told to."""

    returned: Any = None
    length: int = 3
    name: str = "odd"

    def prompts(self, params: Params, batch: Batch) -> Any:
        return self.returned(params, batch) if callable(self.returned) else self.returned


NOT_A_FORM = "text"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **forms: str) -> None:
    """An installed package `strange-forms` that declares these names of this module."""
    info = folder / "strange_forms-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-forms\nVersion: 1.0\n")
    points = "".join(f"{name} = tests.parameterisations.strangers:{value}\n" for name, value in forms.items())
    (info / "entry_points.txt").write_text(f"[promptprior.parameterisations]\n{points}")
    monkeypatch.syspath_prepend(folder)
    uncached = getattr(plugins._entry_points, "__wrapped__", plugins._entry_points)
    monkeypatch.setattr(plugins, "_entry_points", uncached)  # so that nothing of it is remembered by other tests
