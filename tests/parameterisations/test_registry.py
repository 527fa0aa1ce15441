"""Names of parameterisations: this library's, those of other packages, and forms that answer without a prompt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptprior.artifacts.artifact import Header, Prompt
from promptprior.artifacts.export_prompt import export_prompt
from promptprior.errors import ArtifactError, SpecError
from promptprior.evaluate import evaluate
from promptprior.notation import Tensor
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.parameterisation import (
    AnsweringForm,
    Diagnosable,
    Foldable,
    Offsetting,
    Penalised,
)
from promptprior.parameterisations.registry import (
    PARAMETERISATIONS,
    folded,
    form_class,
    parameterisation,
    plain_settings,
)
from promptprior.parameterisations.weights import LoraForm, OwnForm
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import tiny
from tests.parameterisations.strangers import Prefix, Silent, install
from tests.world import choice_task, early, text_task

BACKBONE = tiny("llama")
LENGTH, COPIES = 4, 3


def prefixes() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(COPIES, LENGTH, BACKBONE.width, generator=g, dtype=torch.float64) * BACKBONE.scale


def batch() -> Batch:
    texts = [
        Tokens((5, 6, 7), ((8,), (9, 10))),
        Tokens((11,), ((12,),)),
        Tokens((5, 6), ((7,),)),
        Tokens((9,), ((5,),)),
    ]
    return collate(texts, [2, 0, 1, 2])


def test_every_form_is_registered_under_its_own_default_name() -> None:
    for name, form in PARAMETERISATIONS.items():
        assert form.__dataclass_fields__["name"].default == name
        assert form_class(name) is form


def test_what_a_form_has_to_offer_is_told_by_its_methods() -> None:
    offers = {
        protocol.__name__: {
            name for name, form in PARAMETERISATIONS.items() if hasattr(form, method)
        }
        for protocol, method in (
            (AnsweringForm, "answers"), (Foldable, "fold"), (Offsetting, "offsets"),
            (Diagnosable, "diagnose"), (Penalised, "penalty"),
        )
    }  # fmt: skip
    assert offers == {
        "AnsweringForm": {"blend", "lora", "own"},
        "Foldable": {"decomposed", "prefix", "residual"},
        "Offsetting": {"offset"},
        "Diagnosable": {"bank", "mixture"},
        "Penalised": {"bank"},
    }
    assert isinstance(LoraForm(2, 2.0), AnsweringForm)
    assert isinstance(Offset(1, 2, 1), Offsetting)
    assert not isinstance(Direct(1, 2), AnsweringForm | Offsetting | Foldable | Diagnosable | Penalised)


def test_a_form_of_another_package_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="unknown parameterisation 'own_prefix'"):
        form_class("own_prefix")
    install(tmp_path, monkeypatch, own_prefix="Prefix")
    assert parameterisation("own_prefix", plain_settings(Prefix(7)), BACKBONE) == Prefix(7)
    with pytest.raises(ArtifactError, match=r"unknown parameterisation 'own_prefixx'; did you mean 'own_prefix'.*bank"):
        form_class("own_prefixx")


def test_a_clash_and_what_is_no_form_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "a", monkeypatch, text="NOT_A_FORM")
    with pytest.raises(SpecError, match=r"'text' .*strange-forms\) is 'text'; expected a frozen dataclass"):
        form_class("text")
    install(tmp_path / "b", monkeypatch, bank="Prefix")
    with pytest.raises(SpecError, match=r"'bank' .*package strange-forms has a name that promptprior itself defines"):
        form_class("bank")


def test_folding_leaves_other_forms_alone() -> None:
    params = {"prefix": prefixes()}
    assert folded(Prefix(LENGTH), params) == (Prefix(LENGTH), params)


def test_a_form_that_answers_by_itself_has_the_losses_and_gradients_of_its_answers() -> None:
    values = prefixes()
    ours = loss_and_gradient(objective_of(BACKBONE, Prefix(LENGTH)), {"prefix": values}, batch())
    direct = PromptObjective(BACKBONE, Direct(LENGTH, BACKBONE.width))
    loss, gradient = loss_and_gradient(direct, {"prompt": values}, batch())
    torch.testing.assert_close(ours, (loss, {"prefix": gradient["prompt"]}), rtol=1e-6, atol=1e-9)
    texts = objective_of(BACKBONE, Prefix(LENGTH)).generate({"prefix": values}, batch(), 5)
    assert texts == direct.generate({"prompt": values}, batch(), 5)


@pytest.mark.parametrize(("form", "tokens_in_front"), [(Prefix(LENGTH), LENGTH), (OwnForm("vectors"), 0)])
def test_the_memory_budget_counts_what_stands_in_front_of_each_text(form: AnsweringForm, tokens_in_front: int) -> None:
    texts = collate([Tokens((5, 6, 7), ((8,),))] * 12, [0] * 12)  # 4 tokens each, all of one copy
    limited = replace(BACKBONE, max_tokens=2 * (4 + LENGTH))
    pieces = list(objective_of(limited, form).split({"prefix": prefixes()}, texts))
    assert [piece.texts for piece in pieces] == [limited.max_tokens // (4 + tokens_in_front)] * len(pieces)
    assert sum(piece.texts for piece in pieces) == 12


def test_its_artifact_is_kept_and_scored_and_is_no_prompt_to_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, own_prefix="Prefix", silent="Silent")
    plain = Direct(LENGTH, BACKBONE.width)
    ours, theirs = (
        Prompt(
            Header("prompt", "kv", {}, form.name, plain_settings(form), BACKBONE.card), {name: prefixes()[:1].float()}
        )
        for form, name in ((Prefix(LENGTH), "prefix"), (plain, "prompt"))
    )
    ours.save_pretrained(tmp_path / "a")
    read = Prompt.from_pretrained(tmp_path / "a", BACKBONE.card)
    for task in (choice_task("t", early), text_task("u", lambda word: word[:2])):
        result, expected = (evaluate(prompt, task, BACKBONE, limit=3) for prompt in (read, theirs))
        assert result.scores == pytest.approx(expected.scores)
    with pytest.raises(ArtifactError, match=r"\(kv, own_prefix\) holds a prefix of keys and values, and no prompt"):
        export_prompt(read, "peft", tmp_path / "out")
    silent = Prompt(replace(read.header, parameterisation="silent", parameterisation_settings=plain_settings(Silent())),
                    read.params)  # fmt: skip
    with pytest.raises(ArtifactError, match=r"holds what the parameterisation 'silent' answers with, and no prompt"):
        export_prompt(silent, "npy", tmp_path / "out")
