"""README and examples do what they say, on a tiny model."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from peft import PeftModel

import promptprior.adapt
import promptprior.fit  # noqa: F401
from promptprior.config.training import Settings, Training
from promptprior.methods import METHODS
from tests.backbone.tiny import config, tokenizer

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *REPOSITORY.glob("*/hub.md")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(config("llama")).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_python_of_the_readme_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [block] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    short = Settings(source=Training(steps=2), target=Training(steps=2))
    for module in ("promptprior.fit", "promptprior.adapt"):
        monkeypatch.setattr(sys.modules[module], "Settings", lambda: short)
    names: dict[str, object] = {}
    tiny = block.replace('pp.load("smollm2", dtype="auto")', f'pp.load("{model}", dtype="float32")')
    assert tiny != block
    exec(tiny, names)
    base = tf.AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, "runs/prompt")  # as its comment says
    assert adapted.peft_config["default"].num_virtual_tokens == 20


def test_the_example_of_an_own_csv_runs(model: Path, tmp_path: Path):
    path = REPOSITORY / "examples" / "own_csv.py"
    spec = importlib.util.spec_from_file_location("own_csv", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracy = example.main(tmp_path / "tickets.csv", str(model), steps=2)
    assert accuracy.keys() == {"zero_shot", "prompt_tuning", "multitask"}
    assert (tmp_path / "tickets.csv").read_text().startswith("text,label\n")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_methods_that_documents_name_exist():
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    table = text.split("\n\n")[1]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named
    assert named <= METHODS.keys()
    families = {name.split("_")[0] for name in METHODS}
    assert families == {name.split("_")[0] for name in named}, "a method is missing in docs/methods.md"
