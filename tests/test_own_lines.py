"""What stands on a terminal is ours: no bars, warnings or log lines of other libraries between our lines."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers as tf

from promptprior.cli.output import SILENCE, only_own_lines
from promptprior.errors import PromptpriorWarning
from tests.backbone.tiny import config, tokenizer

STEPS = re.compile(r"\w+ · target step \d+/\d+ · loss \d+\.\d+ · [^·]+ left")
RUN_ALL = """
import json, sys
from promptprior.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with two tiny models and a task."""
    classes = {"llama": tf.AutoModelForCausalLM, "t5": tf.AutoModelForSeq2SeqLM}
    for family, auto_class in classes.items():
        torch.manual_seed(0)
        auto_class.from_config(config(family)).save_pretrained(tmp_path / family)
        tokenizer().save_pretrained(tmp_path / family)
    (tmp_path / "task").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {i} {'ae'[i % 2]}", "label": ("low", "high")[i % 2]} for i in range(12)]
        (tmp_path / "task" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.jsonl").write_text('{"text": "abc"}\n{"text": "abd"}\n')
    return tmp_path


def test_stderr_has_only_our_lines(workplace: Path) -> None:
    """Each command is one that printed something foreign before: loading, PEFT's kernels, 8 bits, a baked T5."""
    adapt = ["adapt", "--target", "./task", "--shots", "2", "--target.steps", "2", "--test-limit", "4"]
    prompt = [*adapt, "--method", "prompt_tuning", "--length", "3"]
    commands = [
        [*prompt, "--backbone", "llama", "--output", "causal"],
        ["predict", "--prompt", "causal", "--target", "./task", "--input", "rows.jsonl", "--output", "answers.jsonl"],
        [*prompt, "--backbone", "t5", "--output", "seq2seq"],
        ["export", "seq2seq", "--format", "vocabulary", "--output", "baked"],
        [*adapt, "--method", "lora", "--backbone", "llama", "--output", "lora"],
    ]
    if find_spec("bitsandbytes") is not None:
        commands.append([*prompt, "--backbone", "llama", "--quantize", "8bit", "--output", "eight"])
    environment = {name: value for name, value in os.environ.items() if name not in SILENCE}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        cwd=workplace, env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not STEPS.fullmatch(line)] == []
    assert "test accuracy" in done.stdout
    assert not re.search(r"warning|loading|writing|it/s|%\|", done.stdout, re.IGNORECASE)


def test_our_warnings_are_a_line_and_others_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    shown, handlers = warnings.showwarning, list(logging.getLogger().handlers)
    with only_own_lines():
        warnings.warn("one batch was halved", PromptpriorWarning, stacklevel=1)
        warnings.warn("will be gone in v6", FutureWarning, stacklevel=1)
        warnings.simplefilter("always")  # as libraries do for themselves
        warnings.warn("will be gone in v7", FutureWarning, stacklevel=1)
    assert capfd.readouterr().err == "promptprior: warning: one batch was halved\n"
    assert (warnings.showwarning, logging.getLogger().handlers) == (shown, handlers)


def test_debug_shows_everything() -> None:
    with pytest.warns(FutureWarning, match="v6"), only_own_lines(debug=True):
        warnings.warn("will be gone in v6", FutureWarning, stacklevel=1)
