"""Every wrong return of a form, and every wrong param, is one sentence that names form, field and what was expected."""

from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.errors import SpecError
from promptprior.notation import Params
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.form_check import check_form
from promptprior.parameterisations.registry import Form
from promptprior.parameterisations.residual import Residual
from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.parameterisations.weights import LoraForm
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny
from tests.parameterisations.strangers import Odd, Prefix, install

BACKBONE = tiny("llama", torch.float32)
D, L, COPIES = BACKBONE.width, 3, 2
BATCH = collate([Tokens((5, 6, 7), ((8,),)), Tokens((9,), ((5,),)), Tokens((6, 6), ((7,),))], [0, 1, 1])
PARAMS = {"prompt": torch.zeros(COPIES, L, D)}


def check(form: Form, params: Any = None, copies: int = COPIES) -> None:
    check_form(form, PARAMS if params is None else params, BATCH, BACKBONE, copies)


def refuses(message: str, form: Form, params: Any = None, copies: int = COPIES) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        check(form, params, copies)
    assert str(caught.value).startswith(f"parameterisation {form.name!r} ({type(form).__name__}): ")


@pytest.fixture
def _odd_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, odd="Odd", own_prefix="Prefix")


def test_forms_as_they_should_be_pass() -> None:
    check(Direct(L, D))
    shared = torch.zeros(COPIES, L, D)
    check(Decomposed(L, D, 1), Decomposed(L, D, 1).init(shared))
    check(Bank(BACKBONE, 6, L), {"bank": torch.randn(COPIES, 6, D)})
    check(LoraForm(2, 2.0), {"weight": torch.zeros(COPIES, 5)})


def test_the_check_costs_nothing_and_leaves_nothing_behind() -> None:
    form = Bank(BACKBONE, 6, L, layers=1)
    before = dict(vars(BACKBONE.meter))
    check(form, {"bank": torch.randn(COPIES, 6, D)})
    assert vars(BACKBONE.meter) == before
    assert form.cache.known == {}


def test_a_name_that_nobody_knows_or_another_class_has() -> None:
    refuses(r"name: unknown parameterisation 'odd'.*entry point of the group promptprior\.parameterisations", Odd())
    refuses(r"name: 'bank' is Bank's; expected a name of its own", Odd(name="bank"))
    refuses("name: unknown parameterisation 'own_prefix'", Prefix(2))
    check(Residual(L, D, name="mine"), residual())  # it folds into a plain prompt, which is what is kept


def residual() -> Params:
    shapes = {"prompt": (L, D), "down": (1, D, 2), "down_bias": (1, 2), "up": (1, 2, D)}
    shapes |= dict.fromkeys(("up_bias", "gain", "shift"), (1, D))
    return {name: torch.zeros(COPIES, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "params: got an empty dict; expected a dict of tensors"),
        ([torch.zeros(2, L, D)], "params: got list; expected a dict of tensors"),
        ({"prompt": 3.0}, r"params\['prompt'\]: got float; expected a tensor of floating-point numbers"),
        ({"prompt": torch.zeros(COPIES, L, D, dtype=torch.long)}, r"params\['prompt'\]: got torch\.int64; expected"),
        ({"prompt": torch.tensor(1.0)}, r"params\['prompt'\]: got shape \[\]; expected a leading copies axis of 2"),
        ({"prompt": torch.zeros(L, D)}, rf"got shape \[3, {D}\]; expected a leading copies axis of 2"),
        ({"prompt": torch.zeros(1, L, D)}, rf"got shape \[1, 3, {D}\]; expected a leading copies axis of 2"),
        ({"wrong": torch.zeros(COPIES, L, D)}, "failed with KeyError: 'prompt'; params are wrong"),
        ({"prompt": torch.zeros(COPIES, L + 1, D)}, rf"length: got prompts \[2, 4, {D}\]; .*length 3, width {D}"),
        ({"prompt": torch.zeros(COPIES, L, D + 1)}, rf"width: got prompts \[2, 3, {D + 1}\]; expected .*width {D}\]"),
    ],
)  # fmt: skip
def test_wrong_params(params: Any, message: str) -> None:
    refuses(message, Direct(L, D), params)


@pytest.mark.usefixtures("_odd_is_registered")
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"prompts\(params, batch\): got NoneType; expected two tensors"),
        (PARAMS["prompt"], r"got Tensor; expected two tensors, \(prompts, index\)"),
        ((PARAMS["prompt"], [0, 1, 1]), "got tuple; expected two tensors"),
        ((BATCH.copy_index, PARAMS["prompt"]), rf"prompts: got \[3\] of torch\.int64; expected .*width {D}"),
        ((torch.zeros(2, L, D).long(), BATCH.copy_index), r"prompts: got .* of torch\.int64; expected"),
        ((torch.zeros(2, D), BATCH.copy_index), rf"prompts: got \[2, {D}\] of torch.float32; expected"),
        ((torch.zeros(2, L + 2, D), BATCH.copy_index), "length: got prompts .* as the form's `length` says"),
        ((torch.zeros(2, L, D - 1), BATCH.copy_index), "width: got prompts .* the backbone's width"),
        ((PARAMS["prompt"], torch.zeros(3)), r"index: got \[3\] of torch\.float32; expected integers \[3\]"),
        ((PARAMS["prompt"], torch.zeros(2).long()), r"index: got \[2\] of torch\.int64; expected integers \[3\]"),
        ((PARAMS["prompt"], torch.zeros(3, 1).long()), r"index: got \[3, 1\] of torch\.int64"),
        ((PARAMS["prompt"], torch.tensor([0, 2, 1])), "index: got 0 to 2; expected 0 to 1, one of the prompts"),
        ((PARAMS["prompt"], torch.tensor([0, -1, 1])), "index: got -1 to 1; expected 0 to 1"),
        (lambda params, batch: params["prompt"][5], "failed with IndexError: index 5 is out of bounds"),
        (lambda params, batch: params["prompt"] @ torch.ones(1), "failed with RuntimeError"),
        (lambda params: None, "failed with TypeError"),
    ],
)
def test_wrong_returns(returned: Any, message: str) -> None:
    refuses(message, Odd(returned))


@pytest.mark.usefixtures("_odd_is_registered")
def test_a_registered_form_passes_and_one_that_answers_by_itself_is_checked_for_its_params() -> None:
    check(Odd((PARAMS["prompt"], torch.tensor([0, 1, 1], dtype=torch.int32))))
    check(Prefix(4), {"prefix": torch.zeros(COPIES, 4, D)})
    refuses(r"params\['prefix'\]: got shape \[1, 4, \d+\]; expected a leading copies axis of 2", Prefix(4),
            {"prefix": torch.zeros(1, 4, D)})  # fmt: skip


def test_running_out_of_memory_is_not_the_forms_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Direct, params: Params, batch: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Direct, "prompts", full)
    with pytest.raises(torch.OutOfMemoryError):
        check(Direct(L, D))
