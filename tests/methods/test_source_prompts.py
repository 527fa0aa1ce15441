"""Prompts of others as sources: read from files, with no training and no source task."""

from pathlib import Path

import numpy as np
import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.backbone import Backbone
from promptprior.errors import ArtifactError, SpecError
from promptprior.fit import fit
from promptprior.methods import make_method
from promptprior.methods.shared.source_prompts import learns_from_tasks, prior_origin, source_labels
from promptprior.notation import Tensor
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, short

TARGET = choice_task("target", early, size=12)
SOURCE = choice_task("source", always(0), size=12)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def prompts(count: int, length: int = 4, width: int = 32) -> Tensor:
    return torch.randn(count, length, width, generator=torch.Generator().manual_seed(3)) * 0.1


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    a, b, start = prompts(3)
    np.save(tmp_path / "a.npy", a.numpy())
    torch.save({"prefix_shared": b}, tmp_path / "b.pt")
    np.save(tmp_path / "start.npy", start.numpy())
    return [tmp_path / "a.npy", tmp_path / "b.pt", tmp_path / "start.npy"]


@pytest.mark.parametrize("name", ["spot", "attempt", "prompt_arithmetic"])
def test_given_prompts_are_the_prior(backbone: Backbone, files: list[Path], name: str) -> None:
    method = make_method(name, {"source_prompts": tuple(map(str, files[:2])), "source_start": str(files[2])})
    prior = fit(method, [], backbone, short())
    a, b, start = prompts(3)
    assert torch.equal(prior.params["prompt"], torch.stack([a, b]))
    assert torch.equal(prior.params["start"][1], start)
    assert prior.header.diagnostics["sources"] == ["a", "b"]
    assert prior.header.diagnostics["cost"] == {"rows": 0, "tokens": 0}
    done = adapt(method, [make_episode(TARGET, 2, 13)], backbone, prior, short())
    assert done[0].dev_score is not None


def test_a_folder_stands_for_the_prompts_in_it_and_their_mean_for_a_start(
    backbone: Backbone, files: list[Path]
) -> None:
    prior = fit(make_method("spot", {"source_prompts": (str(files[0].parent),)}), [], backbone, short())
    assert prior.header.diagnostics["sources"] == ["a", "b", "start"]
    torch.testing.assert_close(prior.params["start"][0], prompts(3).mean(0))


def test_prompts_that_cannot_be_sources_are_refused(backbone: Backbone, files: list[Path], tmp_path: Path) -> None:
    def fitted(*paths: Path) -> object:
        return fit(make_method("spot", {"source_prompts": tuple(map(str, paths))}), [], backbone, short())

    with pytest.raises(SpecError, match=r"missing.npy \(--options.source-prompts\): no such file"):
        fitted(files[0], tmp_path / "missing.npy")
    np.save(tmp_path / "long.npy", prompts(1, length=7)[0].numpy())
    with pytest.raises(SpecError, match=r"long.npy is 7 x 32; this run has prompts of 4 x 32"):
        fitted(files[0], tmp_path / "long.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="the folder is empty"):
        fitted(tmp_path / "empty")
    np.save(tmp_path / "ids.npy", np.arange(6))
    with pytest.raises(ArtifactError, match=r"ids.npy"):
        fitted(tmp_path / "ids.npy")


def test_what_a_prior_is_prior_origin_is_told_by_the_numbers_in_files(files: list[Path]) -> None:
    trained, fresh = make_method("spot"), make_method("prompt_tuning")
    given = make_method("spot", {"source_prompts": tuple(map(str, files[:2]))})
    assert (learns_from_tasks(trained), learns_from_tasks(given), learns_from_tasks(fresh)) == (True, False, False)
    assert prior_origin(trained, [SOURCE]) == [SOURCE.fingerprint]
    assert prior_origin(fresh, [SOURCE]) == []
    before = prior_origin(given, [])
    assert len(set(before)) == 2
    files[0].rename(files[0].with_name("renamed.npy"))
    again = make_method("spot", {"source_prompts": (str(files[0].with_name("renamed.npy")), str(files[1]))})
    assert prior_origin(again, []) == before
    np.save(files[0].with_name("renamed.npy"), prompts(1)[0].numpy() * 2)
    assert prior_origin(again, [])[0] != before[0]
    assert source_labels(again, [SOURCE]) == ("renamed", "b")
    assert source_labels(trained, [SOURCE]) == ("source",)


def test_attention_cannot_be_trained_on_sources_that_are_not_there(backbone: Backbone, files: list[Path]) -> None:
    options = {"source_prompts": (str(files[0]), str(files[1])), "attention_steps": 3}
    with pytest.raises(SpecError, match=r"2 prompts, 1 tasks \(--sources\)"):
        fit(make_method("attempt", options), [SOURCE], backbone, short())
