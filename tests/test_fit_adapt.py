"""From sources to prior to prompt: what is refused before any work, and what comes out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.errors import ArtifactError, SpecError, TrainingError
from promptprior.evaluate import evaluate
from promptprior.fit import RunControl, fit
from promptprior.methods import Episode, make_method
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, random_batch, short, text_task

SOURCES = [choice_task("yes", always(0)), choice_task("no", always(1))]
TARGET = choice_task("target", early)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def prior(backbone: Backbone) -> Prior:
    return fit(make_method("multitask"), SOURCES, backbone, short())


@pytest.fixture
def episode() -> Episode:
    return make_episode(TARGET, 2, 13)


def test_a_prior_of_another_backbone_is_refused(prior: Prior, episode: Episode) -> None:
    with pytest.raises(ArtifactError, match=r"the prior of multitask was trained on tiny-llama .* used with tiny-gpt2"):
        adapt(make_method("multitask"), [episode], tiny("gpt2", torch.float32), prior, short())


def test_a_prior_of_another_method_is_refused(backbone: Backbone, prior: Prior, episode: Episode) -> None:
    with pytest.raises(SpecError, match=r"fitted by 'multitask', not 'spot' \(--method, --prior\)"):
        adapt(make_method("spot"), [episode], backbone, prior, short())


def test_a_missing_prior_is_asked_for(backbone: Backbone, episode: Episode) -> None:
    with pytest.raises(SpecError, match=r"'spot' starts from a prior: fit one first, or give --prior FOLDER"):
        adapt(make_method("spot"), [episode], backbone, None, short())


def test_priors_must_be_one_or_one_for_each(backbone: Backbone, prior: Prior, episode: Episode) -> None:
    with pytest.raises(SpecError, match="2 priors for 1 episodes"):
        adapt(make_method("multitask"), [episode], backbone, [prior, prior], short())


def test_a_prior_of_another_length_is_refused(backbone: Backbone, prior: Prior, episode: Episode) -> None:
    with pytest.raises(SpecError, match=r"prompts of length 4, the settings say 6: --length 4"):
        adapt(make_method("multitask"), [episode], backbone, prior, short(length=6))


def test_sources_are_needed(backbone: Backbone) -> None:
    with pytest.raises(SpecError, match=r"'multitask' learns from source tasks; name some \(--sources\)"):
        fit(make_method("multitask"), [], backbone, short())
    with pytest.raises(SpecError, match="'zero_shot' has no prior to fit; use adapt"):
        fit(make_method("zero_shot"), SOURCES, backbone, short())


def test_a_folder_with_other_files_is_refused_before_any_training(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior/thesis.tex").write_text("")
    with pytest.raises(ArtifactError, match=r"thesis\.tex"):
        fit(make_method("multitask"), SOURCES, backbone, short(), control=RunControl(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_other_settings_in_the_same_folder_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    fit(make_method("multitask"), SOURCES, backbone, short(), control=RunControl(tmp_path))
    other = short(source=replace(short().source, learning_rates=(0.1,)))
    for changes in ({"settings": other}, {"settings": short(), "seed": 21}):
        with pytest.raises(TrainingError, match="another run"):
            fit(make_method("multitask"), SOURCES, backbone, **changes, control=RunControl(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="another run"):
        fit(make_method("multitask"), SOURCES[::-1], backbone, short(), control=RunControl(tmp_path))


def test_another_prior_is_not_taken_for_the_one_that_was_adapted(
    backbone: Backbone, prior: Prior, episode: Episode, tmp_path: Path
) -> None:
    adapt(make_method("multitask"), [episode], backbone, prior, short(), control=RunControl(tmp_path))
    other = fit(make_method("multitask"), SOURCES, backbone, short(), seed=21)
    with pytest.raises(TrainingError, match=r"started from other parameters \(another prior\?\)"):
        adapt(make_method("multitask"), [episode], backbone, other, short(), control=RunControl(tmp_path))


def test_other_shots_are_another_run(backbone: Backbone, episode: Episode, tmp_path: Path) -> None:
    adapt(make_method("prompt_tuning"), [episode], backbone, None, short(), control=RunControl(tmp_path))
    fewer = replace(episode, shots=replace(episode.shots, train=episode.shots.train[:-1]))
    with pytest.raises(TrainingError, match="another run"):
        adapt(make_method("prompt_tuning"), [fewer], backbone, None, short(), control=RunControl(tmp_path))


def test_a_prompt_says_where_it_comes_from(backbone: Backbone, prior: Prior, episode: Episode) -> None:
    using = short(target=replace(short().target, learning_rates=(0.1, 0.3)))
    done = adapt(make_method("multitask"), [episode], backbone, prior, using)[0]
    header = done.prompt.header
    assert (header.kind, header.method, header.settings["k"], header.settings["seed"]) == ("prompt", "multitask", 2, 13)
    assert header.tasks[0].example_ids == tuple(e.id for e in (*episode.shots.train, *episode.shots.dev))
    assert header.backbone == backbone.card
    assert done.trainable == 4 * backbone.width
    assert [point["step"] for point in done.curve] == list(range(7))
    assert done.curve[0]["train_loss"] is None
    assert {p["step"] for p in done.curve if p["dev_nll"] is not None} == {0, 2, 4, 6}
    assert done.cost.rows > 0
    assert prior.header.tasks[0].role == "source"


def test_zero_shot_is_the_backbone_alone(backbone: Backbone, episode: Episode) -> None:
    done = adapt(make_method("zero_shot"), [episode], backbone, None, short())[0]
    assert (done.learning_rate, done.best_step, done.trainable) == (None, 0, 0)
    assert done.prompt.params["prompt"].shape == (1, 0, backbone.width)


@pytest.mark.parametrize("name", ["zero_shot", "prompt_tuning"])
@pytest.mark.parametrize("folds", [0, 2])
def test_a_header_has_the_dev_score_and_none_of_free_text(
    backbone: Backbone, episode: Episode, name: str, folds: int, tmp_path: Path
) -> None:
    said = make_episode(text_task("said", str.upper), 4, 13)
    for one in adapt(make_method(name), [episode, said], backbone, None, short(folds=folds)):
        one.prompt.save_pretrained(tmp_path / one.episode.task.name)
        dev: Any = Prompt.from_pretrained(tmp_path / one.episode.task.name, backbone.card).header.scores["dev"]
        assert dev["dev_score"] == one.dev_score
        assert (one.dev_score is None) == (one.episode is said)
        assert dev["best_step"] == one.best_step


def test_tests_of_like_named_tasks_are_not_confused(backbone: Backbone) -> None:
    """Two tasks of one name and different examples, adapted together: each is scored on its own test split."""
    flipped = replace(TARGET, examples={**TARGET.examples, "test": tuple(
        replace(e, label=1 - (e.label or 0), target=e.choices[1 - (e.label or 0)]) for e in TARGET.split("test")
    )})  # fmt: skip
    both = [make_episode(TARGET, 2, 13), make_episode(flipped, 2, 13)]
    done = adapt(make_method("prompt_tuning"), both, backbone, None, short())
    one, other = (m.scores["accuracy"] for m in score_on_test(backbone, done))
    assert one == pytest.approx(1 - other)
    assert one == pytest.approx(evaluate(done[0].prompt, TARGET, backbone).scores["accuracy"])


def test_an_adapted_prompt_is_a_peft_adapter_with_the_same_losses(
    backbone: Backbone, episode: Episode, tmp_path: Path
) -> None:
    from peft import PeftModel
    from torch.nn.functional import cross_entropy

    made = adapt(make_method("prompt_tuning"), [episode], backbone, None, short())[0].prompt
    made.save_pretrained(tmp_path / "prompt")
    model = PeftModel.from_pretrained(tiny("llama", torch.float32).frozen.model, tmp_path / "prompt")
    batch = random_batch(3)
    ours = backbone.losses(made.params["prompt"], batch.reading(torch.zeros(3, dtype=torch.long)))
    for x in range(3):
        text = batch.text_ids[x, : batch.text_lengths[x]]
        target = batch.target_ids[x, : batch.target_lengths[x]]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([text, target])[None]).logits[0]
        theirs = cross_entropy(logits[-len(target) - 1 : -1], target)
        torch.testing.assert_close(ours[x], theirs, rtol=1e-5, atol=1e-5)
