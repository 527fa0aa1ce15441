"""Exported prompts are read back by the tool they are for, and give the same numbers there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file

from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard
from promptprior.artifacts.export_prompt import export_prompt, export_vocabulary
from promptprior.artifacts.import_prompt import read_prompt
from promptprior.backbone import Backbone
from promptprior.errors import ArtifactError
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny

LENGTH = 4
TASKS = (TaskCard("sst2", "1", "f" * 16, "target", ("train/1",)),)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def prompt_of(backbone: Backbone, seed: int = 0) -> Prompt:
    values = torch.randn(1, LENGTH, backbone.width, generator=torch.Generator().manual_seed(seed)) * backbone.scale
    shape = {"length": LENGTH, "width": backbone.width}
    return Prompt(
        Header("prompt", "spot", {}, "direct", shape, backbone.card, TASKS, {"accuracy": 0.75}), {"prompt": values}
    )


def engine_loss(backbone: Backbone, prompt: Prompt) -> float:
    return float(backbone.losses(prompt.params["prompt"], collate([Tokens((5, 6, 7), ((8, 9),))]))[0])


def loss_of(logits: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor([8, 9])))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "t5"])
def test_peft_reads_the_adapter(family: str, tmp_path: Path):
    backbone = tiny(family, torch.float32)
    prompt = prompt_of(backbone)
    export_prompt(prompt, "peft", tmp_path / "peft")
    assert {p.name for p in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    tuned = PeftModel.from_pretrained(backbone.frozen.model, tmp_path / "peft")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        if backbone.card.is_encoder_decoder:
            start = torch.tensor([[backbone.frozen.model.config.decoder_start_token_id, 8]])
            logits = tuned(input_ids=ids, decoder_input_ids=start).logits[0]
        else:
            logits = tuned(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -2:]
    assert loss_of(logits) == pytest.approx(engine_loss(backbone, prompt), rel=1e-4)


def test_numpy_and_safetensors_hold_the_matrix(backbone: Backbone, tmp_path: Path):
    prompt = prompt_of(backbone)
    export_prompt(prompt, "npy", tmp_path / "npy")
    export_prompt(prompt, "safetensors", tmp_path / "st")
    array = np.load(tmp_path / "npy" / "prompt.npy", allow_pickle=False)
    assert array.dtype == np.float32
    assert np.array_equal(array, prompt.params["prompt"][0].numpy())
    assert torch.equal(load_file(tmp_path / "st" / "prompt.safetensors")["prompt"], prompt.params["prompt"][0])
    with torch.no_grad():  # numbers from numpy alone, in plain transformers
        model = backbone.frozen.model
        embeds = torch.cat([torch.from_numpy(array), model.get_input_embeddings()(torch.tensor([5, 6, 7, 8]))])[None]
        logits = model(inputs_embeds=embeds).logits[0, -2:]
    assert loss_of(logits) == pytest.approx(engine_loss(backbone, prompt), rel=1e-4)


@pytest.mark.parametrize("form", ["peft", "npy", "safetensors"])
def test_what_is_exported_can_be_imported(backbone: Backbone, tmp_path: Path, form: str):
    prompt = prompt_of(backbone)
    export_prompt(prompt, form, tmp_path / "out")
    path = tmp_path / "out" if form == "peft" else next((tmp_path / "out").glob("prompt.*"))
    assert torch.equal(read_prompt(path, backbone.card), prompt.params["prompt"][0])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| sst2 | target | 1 | 1 |" in card
    assert "accuracy: 0.75" in card


def test_the_snippets_of_the_cards_run(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompt = prompt_of(backbone)
    monkeypatch.chdir(tmp_path)
    for form in ("npy", "safetensors"):
        export_prompt(prompt, form, "this-folder" if form == "npy" else "other")
        card = Path("this-folder" if form == "npy" else "other", "README.md").read_text()
        [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        names: dict[str, object] = {}
        exec(code.replace("this-folder", "this-folder" if form == "npy" else "other"), names)
        assert np.array_equal(np.asarray(names["prompt"]), prompt.params["prompt"][0].numpy())


def test_a_model_with_prompts_in_its_vocabulary(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first, second = prompt_of(backbone, 1), prompt_of(backbone, 2)
    baked = export_vocabulary({"sst2": first, "trec": second}, backbone.frozen, tmp_path / "this-folder")
    told = json.loads((tmp_path / "this-folder" / "promptprior_prompts.json").read_text())
    assert told["trec"]["text"] == baked[1].text == "".join(f"<prompt:trec:{i}>" for i in range(LENGTH))
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "this-folder")
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "this-folder")
    for prompt, one in zip((first, second), baked, strict=True):
        text = tokenizer(one.text + "abc", return_tensors="pt").input_ids
        row = backbone.tokens(["abc"], [["x"]])[0].text
        ours = backbone.losses(prompt.params["prompt"], collate([Tokens(row, ((8, 9),))]))
        with torch.no_grad():
            logits = model(torch.cat([text, torch.tensor([[8]])], dim=1)).logits[0, -2:, :96]
        assert loss_of(logits) == pytest.approx(float(ours[0]), rel=1e-4)
    card = (tmp_path / "this-folder" / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "your text" in capsys.readouterr().out


def test_prompts_of_another_backbone_are_refused(backbone: Backbone, tmp_path: Path):
    other = tiny("qwen2", torch.float32)
    with pytest.raises(ArtifactError, match=r"prompt 'p' was trained on tiny-llama .* cannot be used with tiny-qwen2"):
        export_vocabulary({"p": prompt_of(backbone)}, other.frozen, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_prompts_that_depend_on_the_text_are_refused(backbone: Backbone, tmp_path: Path):
    header = Header("prompt", "tpt", {}, "bank", {"size": 4, "retrieve": 2}, backbone.card)
    bank = Prompt(header, {"bank": torch.randn(1, 4, 32)})
    for form in ("peft", "npy", "safetensors"):
        with pytest.raises(ArtifactError, match=r"another prompt for every text, so it is no single prompt to export"):
            export_prompt(bank, form, tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"prompt 'tpt' \(tpt, bank\) makes another prompt for every text"):
        export_vocabulary({"tpt": bank}, backbone.frozen, tmp_path / "out")
    shapes = {"length": 4, "positions": 3, "rank": 2}
    header = Header("prompt", "dept", {}, "offset", shapes, backbone.card)
    dept = Prompt(header, {"prompt": torch.ones(1, 4, 32), "a": torch.ones(1, 3, 2), "b": torch.ones(1, 2, 32)})
    with pytest.raises(ArtifactError, match=r"\(dept, offset\) also changes the embeddings of every text"):
        export_prompt(dept, "npy", tmp_path / "out")
    header = Header("prompt", "lora", {}, "lora", {"rank": 2, "alpha": 2.0, "modules": ["q_proj"]}, backbone.card)
    with pytest.raises(ArtifactError, match=r"\(lora, lora\) holds weights of the model.* and no prompt"):
        export_prompt(Prompt(header, {"w": torch.ones(1, 2)}), "npy", tmp_path / "out")
    particles = Prior(Header("prior", "bmtpt", {}, "direct", {"length": 4, "width": 32}, backbone.card),
                      {"prompt": torch.randn(3, 4, 32)})  # fmt: skip
    with pytest.raises(ArtifactError, match=r"holds 3 prompts; one was expected"):
        export_prompt(particles, "npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_of_others_is_deleted_and_nothing_half_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    for form in ("peft", "npy"):
        with pytest.raises(ArtifactError, match=r"1 other file\(s\) that saving would delete \(thesis\.tex\)"):
            export_prompt(prompt_of(backbone), form, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    monkeypatch.setattr("promptprior.backbone.added_tokens.embedding_factor", lambda model: 2.0)
    with pytest.raises(ArtifactError, match=r"logits that differ"):
        export_vocabulary({"p": prompt_of(backbone)}, backbone.frozen, tmp_path / "model")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
