"""promptprior import and export from end to end: another tool's file to a prompt, its scores, a model that has it."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers as tf

from promptprior.artifacts.artifact import Prompt
from promptprior.cli import main
from tests.backbone.tiny import saved_model
from tests.test_cli import Cli, write_task


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model", seed=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_task(tmp_path / "data" / "edges", "xz")
    return tmp_path / "data"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def array(tmp_path: Path) -> Path:
    np.save(tmp_path / "prompt.npy", np.random.default_rng(0).normal(0, 0.02, size=(3, 32)).astype(np.float32))
    return tmp_path / "prompt.npy"


def test_an_imported_array_is_evaluated_and_baked(cli: Cli, model: Path, data: Path, array: Path, tmp_path: Path):
    words = ["import", array, "--backbone", model, "--task", "edges", "--data", data, "--output", tmp_path / "imported"]
    assert cli(*words, "--dry-run")[0] == 0
    assert not (tmp_path / "imported").exists()
    code, out, _ = cli(*words)
    assert code == 0
    assert out.startswith("3 tokens of width 32 (npy)")
    assert Prompt.from_pretrained(tmp_path / "imported").header.tasks[0].name == "edges"

    score = ["evaluate", "--prompt", tmp_path / "imported", "--data", data, "--dtype", "float32", "--json"]
    assert '"task": "edges"' in cli(*score)[1]  # its backbone and task are its own

    code, out, _ = cli("export", tmp_path / "imported", "--format", "vocabulary", "--output", tmp_path / "baked")
    assert code == 0
    assert "<prompt:imported:0><prompt:imported:1><prompt:imported:2>\n" in out
    baked = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "baked")
    assert np.array_equal(baked.get_input_embeddings().weight[-3:].detach().numpy(), np.load(array))
    assert cli("export", tmp_path / "imported", "--format", "npy", "--output", tmp_path / "npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "npy" / "prompt.npy"), np.load(array))


def test_an_adapter_that_only_peft_wrote_is_evaluated(cli: Cli, model: Path, data: Path, tmp_path: Path):
    torch.manual_seed(0)
    base = tf.AutoModelForCausalLM.from_pretrained(model)
    peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path / "theirs"
    )
    score = ["--data", data, "--target", "edges", "--backbone", model, "--dtype", "float32", "--json"]
    code, direct, _ = cli("evaluate", "--prompt", tmp_path / "theirs", *score)
    assert code == 0
    assert cli("import", tmp_path / "theirs", "--backbone", model, "--output", tmp_path / "ours")[0] == 0
    assert cli("evaluate", "--prompt", tmp_path / "ours", *score)[1] == direct.replace("theirs", "ours")


def test_two_prompts_in_one_model(cli: Cli, model: Path, array: Path, tmp_path: Path):
    for name in ("a", "b"):
        assert cli("import", array, "--backbone", model, "--output", tmp_path / name / "prompt")[0] == 0
    both = f"{tmp_path / 'a' / 'prompt'},{tmp_path / 'b' / 'prompt'}"
    code, _, err = cli("export", both, "--format", "vocabulary", "--output", tmp_path / "baked")
    assert code == 2
    assert "two prompts are called the same: prompt, prompt; say what they are (--names)" in err
    assert cli("export", both, "--names", "a,b", "--format", "vocabulary", "--output", tmp_path / "baked")[0] == 0
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "baked")
    assert tokenizer("<prompt:b:0>").input_ids == [99]
    assert cli("export", both, "--format", "npy", "--output", tmp_path / "npy")[2].endswith("holds one prompt; got 2\n")


def test_bad_files_stop_before_anything_is_loaded_or_written(cli: Cli, model: Path, array: Path, tmp_path: Path):
    array.write_bytes(array.read_bytes()[:100])
    code, _, err = cli("import", array, "--backbone", "no/such-model", "--output", tmp_path / "out")
    assert code == 2
    assert "prompt.npy: not a whole .npy file" in err
    np.save(array, np.ones((3, 8), np.float32))
    code, _, err = cli("import", array, "--backbone", model, "--output", tmp_path / "out")
    assert code == 2
    assert "has width 32: name the backbone it was trained on (--backbone)" in err
    assert not (tmp_path / "out").exists()
    code, _, err = cli("export", array, "--format", "npy", "--output", tmp_path / "out")
    assert code == 2
    assert f"first promptprior import {array} --backbone MODEL --output FOLDER" in err


def test_a_prompt_for_an_engine_is_a_folder_with_its_client(cli: Cli, model: Path, array: Path, tmp_path: Path):
    assert cli("import", array, "--backbone", model, "--output", tmp_path / "imported")[0] == 0
    export = ["export", tmp_path / "imported", "--output", tmp_path / "served", "--format"]
    assert cli(*export, "vllm", "--dry-run")[1].startswith("write 3 vectors of imported as vllm")
    assert not (tmp_path / "served").exists()
    code, out, _ = cli(*export, "vllm", "--dtype", "bfloat16")
    assert code == 0
    assert out.startswith("note: vLLM keeps keys and values of whole blocks of 16 tokens: 0 of the 3")
    names = {"README.md", "client.py", "concat.jinja", "prompt.json", "prompt.pt", "serve.sh"}
    assert {path.name for path in (tmp_path / "served").iterdir()} == names
    assert f"MODEL={model}" in (tmp_path / "served" / "serve.sh").read_text()
    code, _, err = cli(*export, "llama.cpp", "--force")
    assert code == 2
    assert "cannot be written as GGUF (--format llama.cpp): its tokenizer is WordLevel, not byte-level BPE" in err
    assert {path.name for path in (tmp_path / "served").iterdir()} == names  # what stood there stands there
