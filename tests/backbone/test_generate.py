"""Our greedy loop against transformers' own `generate`, for every causal family."""

import warnings

import pytest

from promptprior.backbone.generate import left_pad

from .test_engine import random_batch, random_prompts
from .tiny import CAUSAL, tiny


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_text_is_that_of_transformers(family: str) -> None:
    backbone = tiny(family)
    batch, prompts = random_batch(6, 1, 2), random_prompts(backbone, 2, 4).detach()
    embeds, mask, _ = left_pad(backbone.frozen, prompts, batch)
    ids = backbone.frozen.model.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # transformers' word for an argument that will be gone
        texts = backbone.generate(prompts, batch, 8)
    assert texts == [backbone.frozen.decode(row) for row in ids.tolist()]


def test_text_may_end_with_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny("llama")
    batch, prompts = random_batch(4, 1, 1), random_prompts(backbone, 1, 4).detach()
    whole = backbone.generate(prompts, batch, 8)
    mark = whole[0][2]  # let this character be the line break
    monkeypatch.setattr(type(backbone.frozen), "decode", lambda self, ids: plain(self, ids).replace(mark, "\n"))
    found = backbone.generate(prompts, batch, 8, first_line=True)
    for long, short in zip(whole, found, strict=True):
        line = long.replace(mark, "\n").lstrip().split("\n")[0]
        assert short.strip().split("\n")[0].strip() == line.strip()
    assert len(found[0]) < len(whole[0])


def plain(frozen, ids):  # type: ignore[no-untyped-def]
    return frozen.tokenizer.decode(list(ids), skip_special_tokens=True)
