"""Every numeric setting of every verb, and every numeric option of every method: values out of bounds are refused."""

# ruff: noqa: E501  # tables of cases, a case a line

import math
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import pytest

from promptprior.cli.verb import VERBS, find_verb
from promptprior.config.mapping import apply_overrides, from_mapping
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.methods import METHODS, make_method
from promptprior.methods.options import option_fields
from tests.hostile.harness import SHORT, TINY, Case, ForkServer

REQUIRED = {
    "adapt": {"target": "t"},
    "compare": {"targets": "t", "sources": "s"},
    "evaluate": {"target": "t", "prompt": "p"},
    "fit": {"sources": "s"},
    "inspect": {"folders": "p"},
    "report": {"results": "r"},
    "serve": {"folder": "p"},
    "similar": {"target": "t", "sources": "s"},
}
WRONG = ("nan", ".nan", "inf", ".inf", "-.inf", "1e400", "1" + "0" * 400, "-1e308", "zebra", "1,zebra", "[]]", "true")


def number_of(hint: Any) -> type | None:
    """int or float where a setting holds that, or a list of it."""
    parts = {hint, *typing.get_args(hint)}
    return float if float in parts else int if int in parts else None


def numeric(cls: Any, key: str = "") -> Iterator[tuple[str, Field[Any], type]]:
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        if not item.init:
            continue
        if is_dataclass(hints[item.name]):
            yield from numeric(hints[item.name], f"{key}{item.name}.")
        elif kind := number_of(hints[item.name]):
            yield f"{key}{item.name}", item, kind


def out_of_bounds(item: Field[Any], kind: type) -> list[str]:
    least, above, most = (item.metadata.get(name) for name in ("least", "above", "most"))
    wrong = [*WRONG, "0.5"] if kind is int else list(WRONG)
    if least is not None:
        wrong += [repr(least - 1), repr(least - 10**6)]
    if above is not None:
        wrong += [repr(above), repr(above - 1)]
    if most is not None:
        wrong += [repr(most * 2 + 1), repr(10**30)]
    return wrong


FLAGS = [(verb, *each) for verb in VERBS if verb != "queue" for each in numeric(find_verb(verb).settings)]  # as compare
OPTIONS = [
    (name, item)
    for name, method in METHODS.items()
    for item in option_fields(method)
    if number_of(typing.get_type_hints(type(method))[item.name])
]


@pytest.mark.parametrize(("verb", "key", "item", "kind"), FLAGS, ids=[f"{verb}-{key}" for verb, key, *_ in FLAGS])
def test_a_flag_takes_numbers_within_its_bounds_alone(verb: str, key: str, item: Field[Any], kind: type) -> None:
    assert {"least", "above"} & item.metadata.keys(), f"{key} says no lower bound"
    assert "most" in item.metadata or kind is float, f"{key} says no upper bound"
    typed = "--" + key.removeprefix("settings.").replace("_", "-")

    def read(text: str) -> object:
        given = {**REQUIRED[verb], key: text}
        return from_mapping(find_verb(verb).settings, apply_overrides({}, given), "command line", flags="--")

    for text in out_of_bounds(item, kind):
        with pytest.raises(SpecError) as error:
            read(text)
        assert typed in str(error.value), text
        assert len(str(error.value)) < 800
    least = item.metadata.get("least")
    within = least if least is not None else item.metadata["above"] + 1
    if key != "source_seed":  # one of the seeds
        read(repr(within))


@pytest.mark.parametrize(("name", "item"), OPTIONS, ids=[f"{name}-{item.name}" for name, item in OPTIONS])
def test_an_option_takes_numbers_within_its_bounds_alone(name: str, item: Field[Any]) -> None:
    assert "most" in item.metadata, f"{item.name} says no upper bound"
    kind = number_of(typing.get_type_hints(type(METHODS[name]))[item.name])
    assert kind is not None
    for text in out_of_bounds(item, kind):
        given = apply_overrides({}, {item.name: text})
        with pytest.raises(SpecError, match=f"--options.{item.name.replace('_', '-')}"):
            make_method(name, given)


@pytest.mark.parametrize("cls", [Training, Settings])
def test_bounds_hold_in_python_too(cls: type) -> None:
    for item in fields(cls):
        least = item.metadata.get("least")
        if least is not None and item.default is not MISSING and not isinstance(item.default, tuple):
            for value in (least - 1, math.nan, 10**400):
                with pytest.raises(SpecError, match=f"--{item.name.replace('_', '-')}"):
                    cls(**{item.name: value})


def adapting(*words: str, refused: str = "", name: str = "", method: str = "prompt_tuning", **more: Any) -> Case:
    base = ["adapt", "--target", "GOOD", *TINY, *SHORT, "--output", "out", "--method", method]
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag in base:
            base[base.index(flag) + 1] = value
        else:
            base += [flag, value]
    return Case(name or " ".join(words)[:80], base, refused=refused, **more)


CASES = [
    adapting("--test-limit", "-5", refused="test-limit.*expected at least 0"),
    adapting("--dev-limit", "0", refused="dev-limit.*at least 1"),
    adapting("--shots", "-1", refused="shots.*at least 1"),
    adapting("--shots", "1" + "0" * 400, refused="shots"),
    adapting("--seed", "-1", refused="seed.*at least 0"),
    adapting("--mixture-temperature", "0", refused="mixture-temperature.*at least"),
    adapting("--mixture-temperature", "1e-300", refused="mixture-temperature.*at least"),
    adapting("--mixture-temperature", "-1", refused="mixture-temperature.*at least"),
    adapting("--mixture-cap", "0", refused="mixture-cap.*at least 1"),
    adapting("--target.learning-rates", "1e30", refused="learning-rates.*at most"),
    adapting("--target.learning-rates", "nan", refused="learning-rates"),
    adapting("--target.learning-rates", "0.3,.inf", refused="learning-rates"),
    adapting("--target.learning-rates", "", refused="learning-rates.*at least one"),
    adapting("--target.weight-decay", "-1", refused="weight-decay.*at least 0"),
    adapting("--target.weight-decay", "1e9", refused="weight-decay.*at most"),
    adapting("--target.batch-size", "1000000000", refused="batch-size.*at most"),
    adapting("--target.steps", "-3", refused="steps.*at least 0"),
    adapting("--target.eval-steps", "1,-3", refused="eval-steps.*at least"),
    adapting("--target.clip", "0", refused="clip.*more than 0"),
    adapting("--target.patience", "0", refused="patience.*at least 1"),
    adapting("--length", "0", refused="length.*at least 1"),
    adapting("--length", "1000000000", refused="length.*at most"),
    adapting("--length", "60000", "--start", "noise", refused="--length"),
    adapting("--options.rank", "1000000000", method="lora", refused="--options.rank.*at most"),
    adapting("--options.rank", "60000", method="lora", refused="--options.rank"),
    Case("evaluate limit 0", ("evaluate", "--prompt", "PROMPT", "--target", "GOOD", "--limit", "0"), refused="--limit.*at least 1"),
    Case("evaluate limit -5", ("evaluate", "--prompt", "PROMPT", "--target", "GOOD", "--limit", "-5"), refused="--limit.*at least 1"),
    *(
        Case(f"fit {flag} {value}", ("fit", "--sources", "GOOD", *TINY[:-2], flag, value, "--output", "out"), refused=flag)
        for flag, value in (
            ("--train-limit", "0"),
            ("--train-limit", "-5"),
            ("--steps", "-1"),
            ("--source.batch-size", "0"),
            ("--source.batch-size", "10000000"),
            ("--source.learning-rates", "-0.1"),
            ("--seed", "99999999999999999999"),
            ("--options.times", "0"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_number_out_of_bounds_is_refused_before_any_work(case: Case, server: ForkServer) -> None:
    server.check(case)
