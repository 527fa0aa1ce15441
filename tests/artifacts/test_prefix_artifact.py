"""A prefix as a folder: ours and PEFT's are the same files, read by either, with equal losses."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.export_prompt import export_prompt
from promptprior.artifacts.import_prompt import find_prompt, import_prompt
from promptprior.artifacts.inspect import inspect_artifact
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.errors import ArtifactError
from promptprior.methods import make_method
from promptprior.notation import Tensor
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.registry import parameterisation
from promptprior.tasks.sampling.batch import Batch
from tests.backbone.test_engine import random_batch
from tests.backbone.tiny import tiny
from tests.world import choice_task, early

TASK = choice_task("target", early)


def adapted_prefix(backbone: Backbone, **changes: object) -> Prompt:
    target = Training(steps=2, batch_size=4, learning_rates=(0.3,))
    settings = Settings(length=4, target=target, **changes)  # type: ignore[arg-type]
    return adapt(make_method("prefix_tuning"), [make_episode(TASK, 2, 13)], backbone, None, settings)[0].prompt


def own_losses(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    form = parameterisation(prompt.header.parameterisation, prompt.header.parameterisation_settings, backbone)
    return objective_of(backbone, form).losses(prompt.params, batch).detach()


def peft_losses(backbone: Backbone, model: peft.PeftModel, batch: Batch) -> Tensor:
    losses = []
    for row in range(batch.rows):
        x = int(batch.text_index[row])
        text, target = batch.text_ids[x, : batch.text_lengths[x]], batch.target_ids[row, : batch.target_lengths[row]]
        if backbone.card.is_encoder_decoder:
            losses.append(model(input_ids=text[None], labels=target[None]).loss)
        else:
            ids, labels = torch.cat([text, target])[None], torch.cat([torch.full_like(text, -100), target])[None]
            losses.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)
    return torch.stack(losses).detach()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_peft_loads_ours_and_both_compute_the_same(family: str, tmp_path: Path) -> None:
    backbone, batch = tiny(family, torch.float32), random_batch(3, 2, 1)
    prompt = adapted_prefix(backbone)
    prompt.save_pretrained(tmp_path / "ours")
    again = Prompt.from_pretrained(tmp_path / "ours", backbone.card)
    assert torch.equal(again.params["prompt"], prompt.params["prompt"])
    expected = own_losses(backbone, prompt, batch)
    assert torch.equal(own_losses(backbone, again, batch), expected)
    assert "peft" in (tmp_path / "ours" / "README.md").read_text()
    loaded = peft.PeftModel.from_pretrained(backbone.frozen.model, tmp_path / "ours")
    torch.testing.assert_close(peft_losses(backbone, loaded, batch), expected, rtol=0, atol=2e-5)

    export_prompt(prompt, "peft", tmp_path / "exported")
    bare = import_prompt(tmp_path / "exported", backbone.card)
    assert torch.equal(bare.params["prompt"], prompt.params["prompt"])
    assert bare.header.parameterisation_settings == {
        name: prompt.header.parameterisation_settings[name] for name in ("length", "depth", "heads", "head_width")
    }


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_prefix_that_peft_wrote(family: str, tmp_path: Path) -> None:
    backbone, batch = tiny(family, torch.float32), random_batch(3, 2, 1)
    is_seq2seq = backbone.card.is_encoder_decoder
    heads = 4 if is_seq2seq else 2
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM",
        num_virtual_tokens=3,
        num_layers=2,
        num_attention_heads=heads,
        token_dim=heads * 8,
    )
    model = peft.get_peft_model(backbone.frozen.model, config)
    model.save_pretrained(tmp_path / "theirs")
    expected = peft_losses(backbone, model, batch)
    backbone.frozen.model.requires_grad_(False)
    read = Prompt.from_pretrained(tmp_path / "theirs", backbone.card)
    assert (read.header.method, read.header.parameterisation) == ("prefix_tuning", "prefix")
    torch.testing.assert_close(own_losses(backbone, read, batch), expected, rtol=0, atol=2e-5)
    assert "PREFIX_TUNING" in inspect_artifact(tmp_path / "theirs")
    if is_seq2seq:  # PEFT gives both layers the same keys and values, so that it can be written again
        read.save_pretrained(tmp_path / "again")
        again = peft.PeftModel.from_pretrained(backbone.frozen.model, tmp_path / "again")
        torch.testing.assert_close(peft_losses(backbone, again, batch), expected, rtol=0, atol=2e-5)


def test_what_peft_has_no_form_for_is_saved_as_ours(tmp_path: Path) -> None:
    for place, (family, changes) in enumerate({"llama": {"layers": (1,)}, "t5": {}}.items()):
        backbone = tiny(family, torch.float32)
        prompt = adapted_prefix(backbone, **changes)
        folder = tmp_path / str(place)
        prompt.save_pretrained(folder)
        assert (folder / "prompt.safetensors").exists()
        assert not (folder / "adapter_config.json").exists()
        again = Prompt.from_pretrained(folder, backbone.card)
        batch = random_batch(3, 2, 1)
        assert torch.equal(own_losses(backbone, again, batch), own_losses(backbone, prompt, batch))
        with pytest.raises(ArtifactError, match="keys and values of every layer"):
            export_prompt(prompt, "peft", tmp_path / "no")


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_matrices_of_embeddings_cannot_carry_it(form: str, tmp_path: Path) -> None:
    backbone = tiny("llama", torch.float32)
    prompt = adapted_prefix(backbone)
    with pytest.raises(ArtifactError, match="no matrix of embeddings does the same"):
        export_prompt(prompt, form, tmp_path / "no")  # type: ignore[arg-type]
    export_prompt(prompt, "peft", tmp_path / "yes")
    with pytest.raises(ArtifactError, match="no matrix of embeddings"):
        find_prompt(tmp_path / "yes", backbone.card)


def test_edited_and_foreign_prefixes_are_refused(tmp_path: Path) -> None:
    backbone = tiny("llama", torch.float32)
    prompt = adapted_prefix(backbone)
    settings = {**prompt.header.parameterisation_settings, "heads": 3}
    with pytest.raises(ArtifactError, match="heads"):
        Prompt(replace(prompt.header, parameterisation_settings=settings), prompt.params)
    export_prompt(prompt, "peft", tmp_path / "folder")
    path = tmp_path / "folder" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(ArtifactError, match="num_layers"):
        Prompt.from_pretrained(tmp_path / "folder", backbone.card)
    path.write_text(json.dumps({**config, "num_attention_heads": 1}))
    other = Prompt.from_pretrained(tmp_path / "folder", backbone.card)
    with pytest.raises(ArtifactError, match="width of a head"):
        own_losses(backbone, other, random_batch(2, 1, 1))
