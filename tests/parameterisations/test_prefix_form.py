"""The form `prefix`: units that mean what those of embeddings mean, layers, and every method that takes it."""

from dataclasses import replace

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.artifacts.artifact import Prior
from promptprior.backbone.key_values import cached_key_values
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.fit import fit
from promptprior.methods import METHODS, make_method
from promptprior.parameterisations.initial import start_prompt
from promptprior.parameterisations.prefix import prefix_form, prefix_start
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early

SOURCES = [choice_task("yes", always(0), size=12), choice_task("no", always(1), size=12)]
TARGET = choice_task("target", early)
OPTIONS = {
    "spot": {"probe_steps": 2},
    "prompt_arithmetic": {"probe_steps": 2},
    "bmtpt": {"particles": 2, "prior_width": (30.0,)},
    **{name: {"budget": "updates", "units_per_step": 2} for name in ("maml", "fomaml", "reptile", "meta_sgd", "imaml")},
}


def collate_one() -> Batch:
    return collate([Tokens((5,), ((6,),))])


def settings(**changes: object) -> Settings:
    source = Training(steps=4, batch_size=4, learning_rates=(0.1,))
    target = Training(steps=2, batch_size=4, learning_rates=(0.1,))
    return Settings(length=3, form="prefix", source=source, target=target, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_start_is_what_the_model_caches_and_its_entries_have_the_scale_of_embeddings(family: str) -> None:
    backbone = tiny(family)
    form = prefix_form(backbone, 40)
    prompt = start_prompt(backbone, "vocabulary", 40, torch.Generator().manual_seed(1))
    params = prefix_start(form, backbone, prompt[None])  # [1, 40, W]
    cached = cached_key_values(backbone.frozen, prompt[None])
    made, index = form.prompts({"prompt": params}, collate_one())
    torch.testing.assert_close(made.keys, cached.keys, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.values, cached.values, rtol=1e-12, atol=1e-12)
    assert index.tolist() == [0]
    spread = params.unflatten(2, (form.depth, 2, -1)).transpose(1, 3).flatten(3).std((0, 3)) / backbone.scale
    assert ((spread > 0.5) & (spread < 2)).all()  # of each layer's keys, and of its values
    real = form.fold({"prompt": params})
    again = form.plain.prompts(real, collate_one())[0]
    assert torch.equal(again.keys, made.keys)
    assert torch.equal(again.values, made.values)


def test_rows_are_laid_out_as_peft_has_them() -> None:
    form = prefix_form(tiny("llama"), 3).plain
    flat = torch.arange(3 * form.width, dtype=torch.float64).view(1, 3, -1)
    made = form.prompts({"prompt": flat}, collate_one())[0]
    both = torch.stack([made.keys, made.values])  # [2, 1, layers, H, L, d]
    peft = flat[0].view(3, form.depth, 2, form.heads, form.head_width)  # PEFT's own view of its embedding
    assert torch.equal(both[:, 0], peft.permute(2, 1, 3, 0, 4))


def test_some_layers() -> None:
    backbone = tiny("llama")
    form = prefix_form(backbone, 3, (1,))
    assert (form.depth, list(form.layers), len(form.key_units)) == (1, [1], 1)
    prompt = start_prompt(backbone, "vocabulary", 3, torch.Generator().manual_seed(1))
    made = form.prompts({"prompt": prefix_start(form, backbone, prompt[None])}, collate_one())[0]
    cached = cached_key_values(backbone.frozen, prompt[None])
    torch.testing.assert_close(made.keys, cached.keys[:, 1:], rtol=1e-12, atol=1e-12)
    with pytest.raises(SpecError, match="has layers 0 to 1"):
        prefix_form(backbone, 3, (2,))
    with pytest.raises(SpecError, match="at most once"):
        prefix_form(backbone, 3, (1, 1))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_sources])
def test_every_method_from_sources_takes_it_or_says_why_not(name: str) -> None:
    backbone, method = tiny("llama"), make_method(name, OPTIONS.get(name))
    if name == "ridge_prior":  # it needs two classes in a source, and never descends on a target
        with pytest.raises(SpecError, match="two or more classes"):
            fit(method, SOURCES, backbone, settings())
        return
    if method.needs_tokens:
        with pytest.raises(SpecError, match=r"form prefix \(--form\).*embeddings"):
            fit(method, SOURCES, backbone, settings())
        return
    prior = fit(method, SOURCES, backbone, settings())
    assert prior.header.parameterisation == "prefix"
    result = adapt(method, [make_episode(TARGET, 2, 13)], backbone, prior, settings())[0]
    made, nll = result.prompt, [point["dev_nll"] for point in result.curve if point.get("dev_nll") is not None]
    assert made.header.parameterisation == "prefix"
    assert not made.header.parameterisation_settings["key_units"]
    assert nll[0] != nll[-1]
    with pytest.raises(SpecError, match="form"):
        adapt(method, [make_episode(TARGET, 2, 13)], backbone, prior, replace(settings(), form="prompt"))


def test_a_prior_in_other_units_starts_at_the_same_prefix() -> None:
    backbone = tiny("llama")
    prior = fit(make_method("multitask"), SOURCES, backbone, settings())
    form = prefix_form(backbone, 3)
    other = replace(form, key_units=[2 * u for u in form.key_units], value_units=[3 * u for u in form.value_units])
    moved = {name: value * (form.unit(value) / other.unit(value)) for name, value in prior.params.items()}
    torch.testing.assert_close(other.fold(moved)["prompt"], form.fold(prior.params)["prompt"])
    kept = {**prior.header.parameterisation_settings, "key_units": other.key_units, "value_units": other.value_units}
    changed = Prior(replace(prior.header, parameterisation_settings=kept), moved)
    episode, still = make_episode(TARGET, 2, 13), replace(settings(), target=Training(steps=0))
    prompts = [adapt(make_method("multitask"), [episode], backbone, p, still)[0].prompt for p in (prior, changed)]
    torch.testing.assert_close(prompts[1].params["prompt"], prompts[0].params["prompt"])


def test_prefix_tuning_starts_where_prompt_tuning_does_and_costs_no_tokens() -> None:
    backbone = tiny("llama")
    still = replace(settings(), form="prompt", target=Training(steps=2, batch_size=4, learning_rates=(1e-9,)))
    results = [
        adapt(make_method(name), [make_episode(TARGET, 2, 13)], backbone, None, still)[0]
        for name in ("prompt_tuning", "prefix_tuning")
    ]
    losses = [[point["dev_nll"] for point in made.curve if point.get("dev_nll") is not None] for made in results]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert results[1].cost.tokens < results[0].cost.tokens
