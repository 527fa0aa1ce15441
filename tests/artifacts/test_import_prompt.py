"""Prompts of other tools are read as they were written, and every bad file says what is wrong with it."""

import pickle
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from promptprior.artifacts.artifact import Header, Prior, Prompt
from promptprior.artifacts.import_prompt import find_prompt, import_prompt, named_tensors, read_prompt
from promptprior.backbone import Backbone
from promptprior.errors import ArtifactError
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import config, tiny

LENGTH, WIDTH = 5, 32


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(LENGTH, WIDTH)).astype(np.float32)


def header(backbone: Backbone, kind: str = "prompt", form: str = "direct", **settings: object) -> Header:
    shape = settings or {"length": LENGTH, "width": WIDTH}
    return Header(kind, "spot", {}, form, shape, backbone.card)


# What is read


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
@pytest.mark.parametrize("leading", [(), (1,)])
def test_numpy_arrays(tmp_path: Path, values: np.ndarray, dtype: str, leading: tuple[int, ...]):
    np.save(tmp_path / "sst2.npy", values.astype(dtype).reshape(*leading, LENGTH, WIDTH))
    found = find_prompt(tmp_path / "sst2.npy")
    assert found.origin == "npy"
    assert found.prompt.dtype == torch.float32
    assert np.array_equal(found.prompt.numpy(), values.astype(dtype).astype(np.float32))


def test_bfloat16_as_numpy_stores_it(tmp_path: Path, values: np.ndarray):
    rounded = torch.from_numpy(values).bfloat16()
    raw = rounded.view(torch.int16).numpy().view("V2")  # numpy has no bfloat16: JAX's arrays are saved as raw bytes
    np.save(tmp_path / "prompt.npy", raw)
    assert b"|V2" in (tmp_path / "prompt.npy").read_bytes() or b"V2" in (tmp_path / "prompt.npy").read_bytes()
    assert torch.equal(read_prompt(tmp_path / "prompt.npy"), rounded.float())


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (lambda t: t, ""),
        (torch.nn.Parameter, ""),  # ATTEMPT's prefix_embeddings.pt
        (lambda t: {"prefix_shared": t, "encoder.final_layer_norm.weight": torch.ones(4)}, "prefix_shared"),
        (lambda t: {"step": 3, "model": {"prompt_encoder.default.embedding.weight": t, "x": torch.ones(2)}},
         "model.prompt_encoder.default.embedding.weight"),
        (lambda t: {"soft_embeds": t.half().float(), "scale": 1.0}, "soft_embeds"),
        (lambda t: {"anything": t}, "anything"),
        (lambda t: [t], "0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_files_of_torch_save(tmp_path: Path, values: np.ndarray, held, name: str, suffix: str):
    prompt = torch.from_numpy(values).half().float()
    torch.save(held(prompt), tmp_path / f"prompt{suffix}")
    found = find_prompt(tmp_path / f"prompt{suffix}")
    assert found.origin == "pt"
    assert found.known.get("tensor", "") == name
    assert torch.equal(found.prompt, prompt)
    assert not found.prompt.requires_grad


def test_the_old_format_of_torch_save(tmp_path: Path, values: np.ndarray):
    torch.save(torch.from_numpy(values), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert np.array_equal(read_prompt(tmp_path / "old.pt").numpy(), values)


def test_safetensors_and_the_tensor_asked_for(tmp_path: Path, values: np.ndarray):
    first, second = torch.from_numpy(values), torch.from_numpy(values * 2)
    save_file({"a": first, "b": second}, tmp_path / "two.safetensors")
    assert torch.equal(read_prompt(tmp_path / "two.safetensors", tensor="b"), second)
    with pytest.raises(
        ArtifactError, match=r"none of its 2 tensors looks like.*--tensor NAME.*a \[5, 32\], b \[5, 32\]"
    ):
        read_prompt(tmp_path / "two.safetensors")
    with pytest.raises(ArtifactError, match=r"no tensor 'c' \(--tensor\); it has a"):
        read_prompt(tmp_path / "two.safetensors", tensor="c")
    save_file({"prompt": first, "start": second}, tmp_path / "named.safetensors")
    assert torch.equal(read_prompt(tmp_path / "named.safetensors"), first)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_folders_of_peft(tmp_path: Path, family: str):
    torch.manual_seed(0)
    made = config(family)
    kind, task = (
        (AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM") if made.is_encoder_decoder else (AutoModelForCausalLM, "CAUSAL_LM")
    )
    tuned = peft.get_peft_model(
        kind.from_config(made), peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.prompt_encoder["default"].embedding.weight[:LENGTH].detach()
    found = find_prompt(tmp_path / "adapter")
    assert torch.equal(found.prompt, expected)
    assert found.known["peft_type"] == "PROMPT_TUNING"
    torch.save(tuned.state_dict(), tmp_path / "state.bin")  # what a training loop saves: the model is in it too
    named = find_prompt(tmp_path / "state.bin", tensor="prompt_encoder.default.embedding.weight")
    assert torch.equal(named.prompt[:LENGTH], expected)


def test_other_adapters_are_refused(tmp_path: Path):
    torch.manual_seed(0)
    for name, other, message in (
        ("prefix", peft.PrefixTuningConfig, "is a prefix of keys and values, which is no matrix of embeddings"),
        ("ia3", peft.IA3Config, r"peft_type 'IA3' cannot be read as a soft prompt; readable are"),
    ):
        options = {"num_virtual_tokens": LENGTH} if name == "prefix" else {}
        model = AutoModelForCausalLM.from_config(config("llama"))
        peft.get_peft_model(model, other(task_type="CAUSAL_LM", **options)).save_pretrained(tmp_path / name)
        with pytest.raises(ArtifactError, match=message):
            read_prompt(tmp_path / name)


def test_our_own_folders(tmp_path: Path, backbone: Backbone, values: np.ndarray):
    prompt = torch.from_numpy(values)
    Prompt(header(backbone), {"prompt": prompt[None]}).save_pretrained(tmp_path / "prompt")
    assert torch.equal(read_prompt(tmp_path / "prompt", backbone.card), prompt)
    spot = Prior(header(backbone, "prior"), {"prompt": prompt[None], "start": prompt[None] * 3})
    spot.save_pretrained(tmp_path / "run" / "prior")
    assert torch.equal(read_prompt(tmp_path / "run"), prompt)  # what fit wrote
    shared = {"shared": prompt[None], "u": torch.full((1, 1, LENGTH), 2.0), "v": torch.full((1, 1, WIDTH), 3.0)}
    settings = {"length": LENGTH, "width": WIDTH, "tasks": 1}
    Prompt(header(backbone, form="decomposed", **settings), shared).save_pretrained(tmp_path / "decomposed")
    assert torch.allclose(read_prompt(tmp_path / "decomposed"), 6 * prompt)


def test_artifacts_that_are_not_one_prompt(tmp_path: Path, backbone: Backbone, values: np.ndarray):
    prompt = torch.from_numpy(values)
    Prior(header(backbone, "prior"), {"prompt": prompt.expand(3, -1, -1)}).save_pretrained(tmp_path / "particles")
    with pytest.raises(ArtifactError, match=r"particles \(spot, direct\) holds 3 prompts; one was expected: adapt it"):
        read_prompt(tmp_path / "particles")
    Prompt(header(backbone, form="bank", size=LENGTH, retrieve=2), {"bank": prompt[None]}).save_pretrained(
        tmp_path / "bank"
    )
    with pytest.raises(
        ArtifactError, match=r"bank \(spot, bank\) makes another prompt for every text.*promptprior predict"
    ):
        read_prompt(tmp_path / "bank")


# What is refused


class Evil:
    """A pickle of this would run code."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/promptprior-evil"),))


def test_pickles_are_never_opened(tmp_path: Path):
    marker = Path("/tmp/promptprior-evil")
    marker.unlink(missing_ok=True)
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("evil.pt", "plain.pt", "evil.npy"):
        with pytest.raises(ArtifactError, match=rf"{name}: it holds .*save"):
            read_prompt(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, values: np.ndarray, suffix: str, kept: float):
    path = tmp_path / f"prompt{suffix}"
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    else:
        save_file({"prompt": torch.from_numpy(values)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ArtifactError, match=rf"{path.name}: .*"):
        read_prompt(path)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((WIDTH,), r"shape \[32\]; expected \[length, width\]"),
        ((3, LENGTH, WIDTH), r"shape \[3, 5, 32\].*looks like 3 prompts: save the one you want"),
        ((0, WIDTH), r"shape \[0, 32\]"),
        ((1, 1, LENGTH, WIDTH), r"shape \[1, 1, 5, 32\]"),
    ],
)
def test_wrong_ranks(tmp_path: Path, shape: tuple[int, ...], says: str):
    np.save(tmp_path / "p.npy", np.ones(shape, np.float32))
    with pytest.raises(ArtifactError, match=says):
        read_prompt(tmp_path / "p.npy")


def test_numbers_that_are_no_prompt(tmp_path: Path, values: np.ndarray):
    np.save(tmp_path / "ids.npy", np.ones((LENGTH, WIDTH), np.int64))
    with pytest.raises(ArtifactError, match=r"ids\.npy: its numbers are int64; expected floating point"):
        read_prompt(tmp_path / "ids.npy")
    torch.save(torch.ones(LENGTH, WIDTH, dtype=torch.long), tmp_path / "ids.pt")
    with pytest.raises(ArtifactError, match=r"holds torch\.int64; expected floating point"):
        read_prompt(tmp_path / "ids.pt")
    values[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", values)
    with pytest.raises(ArtifactError, match=r"nan\.npy: tensor 'prompt' has 1 of 160 entries that are NaN or Inf"):
        read_prompt(tmp_path / "nan.npy")


def test_wrong_width(tmp_path: Path, backbone: Backbone, values: np.ndarray):
    np.save(tmp_path / "wide.npy", np.ones((LENGTH, WIDTH + 1), np.float32))
    with pytest.raises(ArtifactError, match=r"width 33; tiny-llama has width 32: name the backbone .*--backbone"):
        read_prompt(tmp_path / "wide.npy", backbone.card)
    np.save(tmp_path / "turned.npy", values.T)
    with pytest.raises(ArtifactError, match=r"it may be transposed"):
        read_prompt(tmp_path / "turned.npy", backbone.card)


def test_paths_that_lead_nowhere(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"readable are \.npy, \.pt"):
        read_prompt(tmp_path / "out")
    torch.save(torch.ones(2, 2), tmp_path / "out" / "prefix_embeddings.pt")
    with pytest.raises(ArtifactError, match=r"so it is no prompt; name the file: prefix_embeddings\.pt"):
        read_prompt(tmp_path / "out")
    for name in ("gone.npy", "gone.pt", "gone.safetensors"):
        with pytest.raises(ArtifactError, match=rf"{name}: no such file"):
            read_prompt(tmp_path / name)
    (tmp_path / "prompt.h5").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"not read from this kind of file; readable are"):
        read_prompt(tmp_path / "prompt.h5")


# What it becomes


def test_an_imported_prompt_is_one_of_ours(tmp_path: Path, backbone: Backbone, values: np.ndarray):
    np.save(tmp_path / "sst2.npy", values)
    made = import_prompt(tmp_path / "sst2.npy", backbone.card)
    made.save_pretrained(tmp_path / "prompt")
    read = Prompt.from_pretrained(tmp_path / "prompt", backbone.card)
    assert read.header.origin == "npy"
    assert read.header.settings == {"file": "sst2.npy"}
    batch = collate([Tokens((5, 6, 7), ((8, 9),))])
    ours = backbone.losses(read.params["prompt"], batch)
    assert torch.equal(ours, backbone.losses(torch.from_numpy(values)[None], batch))
    tuned = peft.PeftModel.from_pretrained(backbone.frozen.model, tmp_path / "prompt")
    logits = tuned(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -2:]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([8, 9]))
    assert torch.allclose(ours[0], theirs, rtol=1e-4)


def test_names_of_nested_tensors():
    held = {"a": torch.ones(1), "b": [torch.ones(2), {"c": torch.ones(3), "n": None}]}
    assert {name: len(value) for name, value in named_tensors(held)} == {"a": 1, "b.0": 2, "b.1.c": 3}
