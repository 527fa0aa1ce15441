"""Damaged checkpoints: refused with the folder to delete, or, where a file is missing, begun again with a warning."""

# ruff: noqa: E501  # tables of cases, a case a line

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hostile.harness import TINY, Case, ForkServer
from tests.hostile.test_models import DEEP, Change, cut, file

S, T, L = "state.json", "state.safetensors", "log.jsonl"
FIT = ("fit", "--sources", "GOOD", *TINY[:-2], "--steps", "3", "--source.batch-size", "2", "--output")


@pytest.fixture(scope="module")
def fitted(server: ForkServer) -> Path:
    """What fit leaves: the prior, and the checkpoint that the same command resumes from."""
    outcome = server.run(Case("fitted", (*FIT, str(server.shared / "fitted"))), server.shared)
    assert outcome.code == 0, outcome.err
    return server.shared / "fitted"


def state(**changes: Any) -> Change:
    """A change of state.json; a key whose value is ... goes."""

    def write(folder: Path) -> None:
        mapping = {**json.loads((folder / S).read_text()), **changes}
        (folder / S).write_text(json.dumps({key: value for key, value in mapping.items() if value is not ...}))

    return write


def log(change: Callable[[list[str]], list[str]], record: bool = False) -> Change:
    """A change of the lines of log.jsonl; with `record` state.json is one that knows no digest of it."""

    def write(folder: Path) -> None:
        lines = change((folder / L).read_text().splitlines())
        (folder / L).write_text("".join(f"{line}\n" for line in lines))
        if record:
            state(log=...)(folder)

    return write


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def write(folder: Path) -> None:
        save_file(change(load_file(folder / T)), folder / T)

    return write


def instead(name: str, make: Callable[[Path], object]) -> Change:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


P = "params/prompt"
DAMAGED: dict[str, tuple[Change, str]] = {
    "state of no keys": (file(S, "{}"), "'key'.*is missing"),
    "state that is a list": (file(S, "[]"), "JSON object; got list"),
    "state that is null": (file(S, "null"), "JSON object; got NoneType"),
    "state of no bytes": (file(S, ""), f"{S}.*JSON"),
    "state cut off": (cut(S, 60), f"{S}.*JSON"),
    "state of deep lists": (file(S, DEEP), f"{S}.*nested"),
    "state that is no UTF-8": (file(S, b"{\xff}"), f"{S}.*UTF-8"),
    "state of 5000 digits": (file(S, '{"step": ' + "9" * 5000 + "}"), f"{S}.*digits"),
    "state that is a pipe": (instead(S, os.mkfifo), S),
    "state that is a folder": (instead(S, Path.mkdir), S),
    "state of another key": (state(key="zebra"), "checkpoint of another run .key zebra"),
    "state of another start": (state(start={"prompt": "zebra"}), "other parameters"),
    "a start that is text": (state(start="zebra"), "'start'"),
    "a key too many": (state(zebra=1), "zebra"),
    "no step": (state(step=...), "'step'"),
    "step -3": (state(step=-3), "step -3: expected at least 0"),
    "step 10**9": (state(step=10**9), "step is 1,000,000,000; expected at most the 3"),
    "step 10**300": (state(step=10**300), "digits"),
    "step 1.5": (state(step=1.5), "'step'.*whole number"),
    "step NaN": (state(step=float("nan")), "'step'.*whole number"),
    "step that is text": (state(step="3"), "'step'.*whole number"),
    "stopped that is text": (state(stopped="no"), "'stopped'.*true or false"),
    "cost of no keys": (state(spent={"seconds": "x"}), "spent.seconds"),
    "cost that is a list": (state(spent=[1]), "'spent'"),
    "best that is text": (state(best="zebra"), "'best'"),
    "best of a copy where none is": (state(best={"step": [0], "score": [0.5], "nll": [1.0], "waited": [0]}), "best/prompt"),
    "format 99": (state(format=99), "format is 99; this promptprior reads"),
    "log without a line": (log(lambda lines: lines[1:]), f"{L}.*state.json was written with"),
    "log of no bytes": (file(L, ""), f"{L}.*state.json was written with"),
    "log with a broken line": (log(lambda lines: [*lines[:-1], lines[-1][:9]]), f"{L}.*JSON"),
    "log with a list": (log(lambda lines: ["[]", *lines]), f"{L}.*state.json was written with"),
    "log with a list, and no digest": (log(lambda lines: ["[]", *lines], record=True), f"{L}.*step"),
    "log without losses, and no digest": (log(lambda lines: ['{"step": 1}', '{"step": 2}', '{"step": 3}'], record=True), f"{L}.*loss"),
    "log of NUL": (file(L, "\0" * 100), f"{L}.*JSON"),
    "log that is no UTF-8": (file(L, b"\xff\n"), f"{L}.*UTF-8"),
    "log of deep lists": (file(L, DEEP), f"{L}.*nested"),
    "log that is a folder": (instead(L, Path.mkdir), L),
    "log that is a pipe": (instead(L, os.mkfifo), L),
    "tensors cut": (cut(T, -10), f"{T}.*safetensors"),
    "tensors of no bytes": (file(T, ""), f"{T}.*safetensors"),
    "tensors that are junk": (file(T, os.urandom(99)), f"{T}.*safetensors"),
    "tensors that are a pipe": (instead(T, os.mkfifo), T),
    "tensors of another shape": (tensors(lambda all: {**all, P: all[P][:, :2].contiguous()}), f"{T}: tensor '{P}'"),
    "tensors of two copies": (tensors(lambda all: {**all, P: all[P].repeat(2, 1, 1)}), f"{T}: tensor '{P}'"),
    "tensors of no dimensions": (tensors(lambda all: {**all, P: torch.tensor(1.0)}), f"{T}: tensor '{P}'"),
    "tensors in integers": (tensors(lambda all: {**all, P: all[P].int()}), f"{T}: tensor '{P}'"),
    "tensors of NaN": (tensors(lambda all: {**all, P: all[P] * torch.nan}), f"{T}.*NaN"),
    "tensors of Inf": (tensors(lambda all: {**all, P: all[P] + torch.inf}), f"{T}.*NaN or Inf"),
    "tensors without the prompt": (tensors(lambda all: {n: t for n, t in all.items() if n != P}), f"{T}: tensor '{P}' is none"),
    "tensors without memory": (tensors(lambda all: {P: all[P]}), f"{T}: tensor 'memory/.*none"),
    "a tensor too many": (tensors(lambda all: {**all, "zebra": torch.ones(1)}), f"{T}: tensor '.*zebra"),
}  # fmt: skip


def damaged(fitted: Path, change: Change) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(fitted, folder)
        change(folder / "checkpoints" / "source")

    return make


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused(name: str, fitted: Path, server: ForkServer) -> None:
    change, refused = DAMAGED[name]
    outcome = server.check(Case(name, (*FIT, "p"), {"p": damaged(fitted, change)}, refused))
    assert "delete" in outcome.err


@pytest.mark.parametrize("names", [(S,), (T,), (L,), (S, L), (T, L)], ids=" ".join)
def test_a_checkpoint_that_misses_a_file_is_begun_again(
    names: tuple[str, ...], fitted: Path, server: ForkServer
) -> None:
    folder = server.shared / f"missing-{'-'.join(names)}"
    shutil.copytree(fitted, folder)
    for name in names:
        (folder / "checkpoints" / "source" / name).unlink()
    outcome = server.run(Case("", (*FIT, str(folder))), server.shared)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("promptprior: warning: ") == 1
    assert f"misses {' and '.join(names)} and is discarded: the run begins again" in outcome.err
    for name in ("promptprior.json", "prior.safetensors"):
        assert (folder / "prior" / name).read_bytes() == (fitted / "prior" / name).read_bytes()
