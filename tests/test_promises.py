"""Sentences of help and docs, each held to what the code does."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.cli import main
from promptprior.compare.plan import Plan, Tasks, cells, with_steps
from promptprior.config.training import Settings
from promptprior.fit import RunControl, make_run_context
from promptprior.methods.shared.bank_setup import frequent_rows
from promptprior.parameterisations.bank import Bank
from promptprior.parameterisations.initial import FREQUENT
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task
from tests.backbone.tiny import tiny
from tests.test_cli import TINY, saved_model, write_task
from tests.world import choice_task, early, short

DOCS = Path(__file__).parents[1] / "docs"
Say = Callable[..., str]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command line in a folder with a model and tasks, and return what it prints."""
    monkeypatch.chdir(tmp_path)
    saved_model(tmp_path / "model", 0)
    for name, letters in {"vowels": "ae", "sounds": "st", "edges": "xz"}.items():
        write_task(tmp_path / "data" / name, letters)
    for name in ("mnli", "qqp"):
        np.save(tmp_path / f"{name}.npy", np.full((3, 32), 0.1, dtype=np.float32) * len(name))

    def run(words: str) -> str:
        code = main([*words.split(), "--data", "data", "--backbone", "model", *map(str, TINY)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def tokens_said(out: str) -> int:
    found = re.search(r"about ([\d,]+) tokens", out)
    assert found, out
    return int(found[1].replace(",", ""))


def test_source_prompts_of_others_stand_for_source_tasks_in_fit_too(say: Say, tmp_path: Path) -> None:
    words = "fit --method spot --options.source-prompts mnli.npy,qqp.npy --output prior"
    assert "from the prompts mnli, qqp: nothing is trained" in say(f"{words} --dry-run")
    assert say(words).strip() == "prior/prior"
    say("adapt --prior prior --target edges --shots 2 --steps 1 --test-limit 4 --output prompt")
    assert (tmp_path / "prompt" / "adapter_config.json").exists()
    one = "compare --methods spot --targets edges --shots 2 --seeds 13 --steps 1 --test-limit 4 --dry-run"
    assert "1 cell" in say(f"{one} --options.spot.source-prompts mnli.npy")  # docs/rivals.md: one path, no list


def test_fit_without_sources_is_still_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("fit", "fit --method spot", "fit --method spot --options.source-prompts "):
        assert main(words.split(" ")) == 2
        assert "name some (--sources)" in capsys.readouterr().err


def test_a_dry_run_of_fit_costs_what_the_method_reads(say: Say) -> None:
    said = {
        name: tokens_said(say(f"fit --method {name} --sources vowels,sounds --steps 20 --dry-run"))
        for name in ("multitask", "multitask_long", "bmtpt", "bmtpt_single")
    }
    assert said["multitask_long"] == pytest.approx(5 * said["multitask"], rel=1e-3)
    assert said["bmtpt"] == pytest.approx(5 * said["multitask"], rel=1e-3)
    assert said["bmtpt_single"] == said["multitask"]


def test_steps_are_target_steps_with_dev_after_each_tenth(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    settings = with_steps(short(), 12)
    assert settings.target == replace(short().target, steps=12, eval_every=4)
    silent = replace(short(), target=replace(short().target, eval_every=0))
    assert with_steps(silent, 12).target.eval_every == 0
    assert with_steps(Settings(), 12).target.eval_every is None
    words = "adapt --method prompt_tuning --target edges --shots 2 --test-limit 4 --dry-run"
    one = say(f"{words} --steps 12")
    same = say(f"{words} --target.steps 12 --target.eval-every 2")
    assert tokens_said(one) == tokens_said(same)
    assert main(["adapt", "--help"]) == 0
    words = "--target.steps; --target.eval-every, where it is a number above 0, becomes a third of them"
    assert words in " ".join(capsys.readouterr().out.split())


def test_what_is_in_the_key_of_a_cell(tmp_path: Path) -> None:
    """docs/decisions.md, "A cell is keyed by content"."""
    backbone, task = tiny("llama", torch.float32), choice_task("target", early)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.ones((20, 32), dtype=np.float32))

    def key(task: Task, model: Backbone = backbone, **changes: object) -> str:
        plan = Plan(**{"methods": ("prompt_tuning",), "targets": ("t",), "shots": (2,), "seeds": (13,), **changes})  # type: ignore[arg-type]
        return cells(plan, Tasks((), (task,), {}), model)[0].key

    renamed = SimpleNamespace(card=replace(backbone.card, name="elsewhere"), frozen=backbone.frozen)
    moved = {"output": tmp_path, "data": tmp_path, "backbone": "elsewhere", "targets": ("elsewhere/t.csv",)}
    assert key(task) == key(task, cast(Backbone, renamed)) == key(task, **moved)  # type: ignore[arg-type]
    assert key(task) != key(replace(task, name="other"))
    given = {
        name: key(task, methods=("spot",), options={"spot": {"source_prompts": [str(tmp_path / f"{name}.npy")]}})
        for name in ("a", "b")
    }
    assert given["a"] != given["b"]


def test_what_tpt_does_otherwise_than_the_released_code() -> None:
    """docs/tpt.md, "Where ours differs from the released code"."""
    assert f"{FREQUENT:,}" in (DOCS / "tpt.md").read_text()
    backbone = tiny("llama", torch.float32)
    context = make_run_context(backbone, Settings(length=4), RunControl())
    rows, table = frequent_rows(context, 60, generator("bank", 13)), backbone.frozen.vocabulary_embeddings
    ids = torch.cdist(rows, table[:FREQUENT].to(rows)).argmin(1)
    torch.testing.assert_close(rows, table[ids].to(rows))
    assert len(set(ids.tolist())) == 60
    texts = collate([Tokens((5, 9, 11), ((3,),)), Tokens((20, 3), ((3,),))])
    for query in ("max", "mean"):
        bank = Bank(backbone, size=60, retrieve=8, query=query)  # type: ignore[arg-type]
        retrieved = bank.retrieved({"bank": rows[None]}, texts)
        assert torch.equal(retrieved, retrieved.sort(1).values)
    assert not backbone.frozen.model.training
    objective_losses = [backbone.losses(rows[None, :4], texts) for _ in range(2)]
    assert torch.equal(*objective_losses)
