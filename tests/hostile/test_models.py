"""Hostile backbones: damaged weights, pickles, odd configs and tokenizers, GGUF files."""

# ruff: noqa: E501  # tables of cases, a case a line

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from promptprior.backbone import load
from promptprior.errors import SpecError
from tests.hostile.harness import SHORT, Case, ForkServer

Change = Callable[[Path], object]


def config(**changes: Any) -> Change:
    """A change of the model's config; a value that is text stands as it is."""

    def write(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **changes}))

    return write


def file(name: str, content: str | bytes) -> Change:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def cut(name: str, keep: int) -> Change:
    def write(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:keep] if keep >= 0 else data[: len(data) + keep])

    return write


def safetensors_header(header: object, tail: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tail


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


DEEP = "[" * 100_000 + "]" * 100_000
MODELS: dict[str, tuple[Change, str]] = {
    "weights cut in half": (cut("model.safetensors", 20_000), "model.safetensors.*safetensors"),
    "weights cut by a byte": (cut("model.safetensors", -1), "model.safetensors.*safetensors"),
    "weights cut in the header": (cut("model.safetensors", 100), "model.safetensors.*safetensors"),
    "weights of seven bytes": (cut("model.safetensors", 7), "model.safetensors.*safetensors"),
    "no bytes of weights": (cut("model.safetensors", 0), "model.safetensors.*safetensors"),
    "junk weights": (file("model.safetensors", os.urandom(1000)), "model.safetensors.*safetensors"),
    "weights that are text": (file("model.safetensors", "<html>not found</html>" * 10), "model.safetensors"),
    "a pointer of git-lfs": (file("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "safetensors"),
    "no tensors": (file("model.safetensors", safetensors_header({})), "weights.*missing|num_hidden_layers"),
    "a header of 2**63 bytes": (file("model.safetensors", safetensors_header({}, length=2**63)), "header"),
    "a deep header": (file("model.safetensors", safetensors_header(DEEP.encode())), "nested"),
    "a header that is a list": (file("model.safetensors", safetensors_header([1])), "header"),
    "a tensor beyond the file": (
        file("model.safetensors", safetensors_header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        "tensor 'w'",
    ),
    "a tensor entry that is text": (file("model.safetensors", safetensors_header({"w": "zebra"})), "tensor 'w'"),
    "a negative shape": (
        file("model.safetensors", safetensors_header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})),
        "tensor 'w'",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "--backbone"),
    "weights that are a folder": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
        "--backbone|model.safetensors",
    ),
    "a pickle that runs code": (pickled, "--backbone"),
    "config of deep lists": (file("config.json", DEEP), "config.json.*nested"),
    "config cut off": (cut("config.json", 50), "config.json.*not JSON"),
    "config that is a list": (file("config.json", "[]"), "config.json.*JSON object"),
    "config of 5000 digits": (file("config.json", '{"hidden_size": ' + "9" * 5000 + "}"), "config.json.*digits"),
    "empty config": (file("config.json", "{}"), "--backbone"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "--backbone"),
    "unknown type": (config(model_type="zebra"), "--backbone.*zebra"),
    "hidden size 0": (config(hidden_size=0), "hidden_size is 0"),
    "hidden size -4": (config(hidden_size=-4), "hidden_size is -4"),
    "hidden size 10**9": (config(hidden_size=10**9), "--backbone"),
    "hidden size as text": (config(hidden_size="32"), "hidden_size is 32"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "ten million layers": (config(num_hidden_layers=10**7), "num_hidden_layers is 10,000,000"),
    "layers -1": (config(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "one layer more": (config(num_hidden_layers=3), "--backbone.*missing"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "heads that do not divide": (config(num_attention_heads=7, num_key_value_heads=7), "--backbone"),
    "vocabulary of -5": (config(vocab_size=-5), "vocab_size is -5"),
    "vocabulary of 10**9": (config(vocab_size=10**9), "--backbone"),
    "vocabulary of another size": (config(vocab_size=17), "--backbone"),
    "width of another size": (config(intermediate_size=17), "--backbone"),
    "dtype zebra": (config(dtype="zebra", torch_dtype="zebra"), "--backbone.*zebra"),
    "activation zebra": (config(hidden_act="zebra"), "--backbone.*zebra"),
    "tokenizer of no keys": (file("tokenizer.json", "{}"), "--backbone"),
    "junk tokenizer": (file("tokenizer.json", os.urandom(100)), "--backbone"),
    "deep tokenizer": (file("tokenizer.json", DEEP), "--backbone"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("*token*")],
        "--backbone",
    ),
    "code of its own": (config(auto_map={"AutoModelForCausalLM": "evil.Evil"}, model_type="evil"), "--backbone"),
}  # fmt: skip


def words(backbone: str = "m", *more: str) -> tuple[str, ...]:
    flags = ("--dtype", "float32", "--length", "3", "--shots", "1", *SHORT, "--output", "out")
    return ("adapt", "--target", "GOOD", "--backbone", backbone, *flags, *more)


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_model_is_refused(name: str, server: ForkServer) -> None:
    change, refused = MODELS[name]

    def make(folder: Path) -> None:
        shutil.copytree(server.shared / "model", folder)
        change(folder)

    server.check(Case(name, words(), {"m": make}, refused))


# Classes of its own: transformers marks what it loads so, and a class of its own would be marked for all later tests.
EVIL = """open({!r}, 'w').close()
import transformers
class Config(transformers.LlamaConfig): pass
class Words(transformers.PreTrainedTokenizerFast): pass
"""


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
def test_code_of_a_model_never_runs_whatever_is_answered(
    kind: str, server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word of ours transformers asks whether to run it, and takes the answer from standard input."""
    folder, executed = tmp_path / "m", tmp_path / "executed"
    shutil.copytree(server.shared / "model", folder)
    (folder / "evil.py").write_text(EVIL.format(str(executed)))
    name, entry = {
        "config": ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}),
        "tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Words", "evil.Words"]},
                      "tokenizer_class": "Evil"}),
    }[kind]  # fmt: skip
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**settings, **entry}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(SpecError):
        load(str(folder), dtype="float32")
    assert not executed.exists()
    # the trap itself works: told to trust, transformers runs it
    kinds = {"config": AutoConfig, "tokenizer": AutoTokenizer}
    with contextlib.suppress(Exception):
        kinds[kind].from_pretrained(folder, trust_remote_code=True)
    assert executed.exists()


GGUF = [
    Case("gguf junk", words("x.gguf"), {"x.gguf": b"GGUF" + b"\xff" * 100}, "x.gguf.*--backbone", env={"PROMPTPRIOR_CACHE": "/tmp/hostile-gguf"}),
    Case("gguf empty", words("x.gguf"), {"x.gguf": b""}, "x.gguf.*--backbone", env={"PROMPTPRIOR_CACHE": "/tmp/hostile-gguf"}),
    Case("gguf text", words("x.gguf"), {"x.gguf": "zebra"}, "x.gguf.*--backbone", env={"PROMPTPRIOR_CACHE": "/tmp/hostile-gguf"}),
    Case("gguf missing", words("x.gguf"), refused="x.gguf.*no such file"),
    Case("gguf folder", words("x.gguf"), {"x.gguf/a": "a"}, "x.gguf"),
    Case("backbone that is a file", words("GOOD"), refused="--backbone"),
    Case("backbone of no name", words(""), refused="--backbone"),
    Case("backbone with NUL", words("a\0b"), refused="--backbone"),
    Case("backbone of 5000 characters", words("m" * 5000), refused="--backbone"),
    Case("backbone above", words("../../../etc"), refused="--backbone"),
]  # fmt: skip


@pytest.mark.parametrize("case", GGUF, ids=str)
def test_a_backbone_that_is_none_is_refused(case: Case, server: ForkServer) -> None:
    server.check(case)
