"""Backbones with 8- and 4-bit weights by bitsandbytes itself, on the CPU."""

from pathlib import Path

import pytest
import torch
import transformers as tf

from promptprior.backbone import Backbone, load
from promptprior.backbone.forward.reference import reference_losses
from promptprior.errors import SpecError

from .test_engine import random_batch, random_prompts
from .tiny import config, tokenizer

WIDER = {  # bitsandbytes packs 64 weights a block
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16},
}
ROUTES = {"llama": "packed_states", "t5": "encoder_decoder_states"}


@pytest.fixture(scope="module", params=WIDER)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, in a folder of its family's name."""
    torch.manual_seed(0)
    made = config(request.param)
    made.update(WIDER[request.param])
    kind = tf.AutoModelForSeq2SeqLM if made.is_encoder_decoder else tf.AutoModelForCausalLM
    folder = tmp_path_factory.mktemp("saved") / request.param
    kind.from_config(made).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def assert_equal_to_reference(backbone: Backbone) -> None:
    batch = random_batch(4, 2, 2)
    prompts = random_prompts(backbone, 2, 3).detach().float().requires_grad_()
    found = torch.autograd.grad(backbone.losses(prompts, batch).sum(), prompts)[0]
    expected = torch.autograd.grad(reference_losses(backbone.frozen, prompts, batch).sum(), prompts)[0]
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_packed_weights_take_a_route_that_asks_for_none(saved: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = load(str(saved), "float32", "cpu", quantize=bits)
    kinds = {type(m).__name__ for m in backbone.frozen.model.modules()}
    assert {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits] in kinds
    assert backbone.states.__name__ == ROUTES[saved.name]
    assert backbone.frozen.dtype == torch.float32
    whole = load(str(saved), "float32", "cpu")
    assert backbone.card.fingerprint != whole.card.fingerprint
    assert backbone.frozen.model.get_memory_footprint() < 0.7 * whole.frozen.model.get_memory_footprint()
    assert_equal_to_reference(backbone)


def test_a_model_that_was_saved_quantised_stays_so(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    made = load(str(saved), "float32", "cpu", quantize="4bit")
    made.frozen.model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again = load(str(tmp_path), "float32", "cpu")
    assert again.card.fingerprint == made.card.fingerprint
    assert_equal_to_reference(again)


def test_another_number_of_bits_is_refused(saved: Path) -> None:
    with pytest.raises(SpecError, match=r"quantize '2bit' \(--quantize\): expected 8bit or 4bit"):
        load(str(saved), "float32", "cpu", quantize="2bit")


def test_a_missing_package_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Using `bitsandbytes` 8-bit quantization requires bitsandbytes")

    for kind in (tf.AutoModelForCausalLM, tf.AutoModelForSeq2SeqLM):
        monkeypatch.setattr(kind, "from_pretrained", missing)
    with pytest.raises(SpecError, match=r"in 8bit \(--quantize\) needs packages: pip install bitsandbytes accelerate"):
        load(str(saved), "float32", "cpu", quantize="8bit")
