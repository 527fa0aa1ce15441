"""Configs are strict, typed, and say in words what is wrong and which flag changes it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from promptprior.config.mapping import (
    apply_overrides,
    flag,
    from_mapping,
    list_settings,
    stable_hash,
    to_mapping,
)
from promptprior.config.training import Settings
from promptprior.config.yaml_file import line_of_key, load_yaml, to_yaml
from promptprior.errors import SpecError


@dataclass(frozen=True)
class Rule:
    steps: int = 5
    learning_rate: float = 0.3
    order: Literal["first", "second"] = "first"


@dataclass(frozen=True)
class Job:
    method: str = field(metadata={"help": "the method to fit"})
    length: int = field(default=20, metadata={"help": "soft tokens"})
    seeds: tuple[int, ...] = (13, 21)
    span: tuple[float, float] = (0.0, 1.0)
    out: Path = Path("runs")
    warm: bool = False
    note: str | None = None
    cap: int | str | None = None
    rule: Rule = field(default_factory=Rule)
    rules: tuple[Rule, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        if self.length < 1:
            raise SpecError(f"length must be at least 1; got {self.length}")


def job(**values: Any) -> Job:
    return from_mapping(Job, {"method": "spot", **values}, "job.yaml", flags="--")


def test_every_kind_of_value_is_built():
    made = job(
        length=8.0, seeds=[1, 2, 3], span=[0, 2], out="a/b", warm=True, note="hello", cap="all",
        rule={"steps": 1, "learning_rate": 1, "order": "second"}, rules=[{"steps": 2}, {}],
        extra={"a": [1, None]},
    )  # fmt: skip
    assert made == Job(
        "spot", 8, (1, 2, 3), (0.0, 2.0), Path("a/b"), True, "hello", "all",
        Rule(1, 1.0, "second"), (Rule(2), Rule()), {"a": [1, None]},
    )  # fmt: skip
    assert [type(x) for x in (made.length, made.span[1], made.rule.learning_rate)] == [int, float, float]
    assert job() == Job("spot")
    assert job(cap=7).cap == 7
    assert job(note=None).note is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lenght": 3}, "job.yaml: unknown key 'lenght'; did you mean 'length'?"),
        ({"rule": {"lerning_rate": 3}}, "job.yaml in 'rule': unknown key 'lerning_rate'; did you mean"),
        ({1: 3}, "unknown key '1'"),
        ({"length": "eight"}, "job.yaml: 'length' (flag --length) is 'eight'; expected a whole number"),
        ({"length": 1.5}, "is 1.5; expected a whole number"),
        ({"length": True}, "is True; expected a whole number"),
        ({"length": None}, "is None; expected a whole number"),
        ({"rule": {"learning_rate": "x"}}, "(flag --rule.learning-rate) is 'x'; expected a number"),
        ({"rule": {"learning_rate": False}}, "is False; expected a number"),
        ({"rule": {"order": "frist"}}, "'rule.order' (flag --rule.order) is an unknown choice 'frist'"),
        ({"rule": 3}, "'rule' (flag --rule) is 3; expected its own settings"),
        ({"rules": [{}, {"steps": "a"}]}, "'rules[1].steps'"),
        ({"seeds": 13}, "'seeds' (flag --seeds) is 13; expected a list, like [a, b]"),
        ({"seeds": [1, "b"]}, "'seeds[1]' (flag --seeds[1]) is 'b'; expected a whole number"),
        ({"span": [1]}, "has 1 items; expected 2"),
        ({"warm": "yes"}, "is 'yes'; expected true or false"),
        ({"warm": 1}, "is 1; expected true or false"),
        ({"method": 7}, "is 7; expected text; put it in quotes if it is meant as text"),
        ({"cap": 1.5}, "is 1.5; expected a whole number or text or null"),
        ({"extra": []}, "expected 'key: value' settings"),
        ({"length": 0}, "job.yaml: length must be at least 1; got 0"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_key_flag_and_expectation(values, message):
    with pytest.raises(SpecError) as caught:
        from_mapping(Job, {"method": "spot", **values}, "job.yaml", flags="--")
    assert message in str(caught.value)


def test_a_missing_setting_says_what_it_means():
    with pytest.raises(SpecError) as caught:
        from_mapping(Job, {}, "job.yaml", flags="--")
    assert str(caught.value) == "job.yaml: 'method' (flag --method) is missing; give text: the method to fit"


def test_a_field_of_a_type_no_file_can_hold_is_a_programming_error():
    @dataclass(frozen=True)
    class Wrong:
        x: complex

    with pytest.raises(TypeError, match="a config field cannot have the type"):
        from_mapping(Wrong, {"x": 1}, "here")


# flags


def flags(**given: str) -> Job:
    named = {name.replace("__", "."): text for name, text in given.items()}
    return from_mapping(Job, apply_overrides({"method": "spot"}, named), "command line", flags="--")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"length": "12"}, {"length": 12}),
        ({"method": "123"}, {"method": "123"}),
        ({"method": "true"}, {"method": "true"}),
        ({"rule__learning-rate": "1e-3", "rule__steps": "7"}, {"rule": Rule(7, 0.001)}),
        ({"seeds": "1,2, 3"}, {"seeds": (1, 2, 3)}),
        ({"seeds": "[4]"}, {"seeds": (4,)}),
        ({"seeds": "5"}, {"seeds": (5,)}),
        ({"seeds": ""}, {"seeds": ()}),
        ({"warm": "true"}, {"warm": True}),
        ({"note": "null"}, {"note": None}),
        ({"note": "none of it"}, {"note": "none of it"}),
        ({"cap": "9"}, {"cap": 9}),
        ({"cap": "half"}, {"cap": "half"}),
        ({"out": "x: y"}, {"out": Path("x: y")}),
        ({"rules": "[{steps: 3}]"}, {"rules": (Rule(3),)}),
        ({"extra__a": "b"}, {"extra": {"a": "b"}}),
    ],
)
def test_flag_text_means_what_the_setting_needs(given, expected):
    assert flags(**given) == Job(**{"method": "spot", **expected})


def test_null_in_quotes_is_text_in_a_file_and_absent_on_the_command_line():
    assert job(note="null").note == "null"
    assert flags(note="null").note is None


def test_overrides_leave_the_mapping_they_cover_alone():
    base = {"rule": {"steps": 1, "order": "second"}, "length": 3}
    laid = apply_overrides(base, {"rule.steps": "2", "new.deep-er.key": "x"})
    assert laid == {"rule": {"steps": "2", "order": "second"}, "length": 3, "new": {"deep_er": {"key": "x"}}}
    assert base == {"rule": {"steps": 1, "order": "second"}, "length": 3}
    with pytest.raises(SpecError, match=r"flag --length.x: 'length' is 3, which has no settings of its own"):
        apply_overrides(base, {"length.x": "1"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("length", "eight", "command line: 'length' (flag --length) is 'eight'; expected a whole number"),
        ("warm", "yes", "is 'yes'; expected true or false"),
        ("seeds", "1,x", "'seeds[1]'"),
        ("rule", "{", "is '{'; expected its own settings"),
    ],
)
def test_wrong_flags_name_themselves(name, text, message):
    with pytest.raises(SpecError) as caught:
        flags(**{name: text})
    assert message in str(caught.value)


def test_settings_list_every_flag_with_type_default_and_help():
    listed = {s.flag: s for s in list_settings(Job)}
    assert listed["--method"].default is None
    assert (listed["--length"].kind, listed["--length"].default, listed["--length"].help) == (
        "a whole number", "20", "soft tokens",
    )  # fmt: skip
    assert listed["--rule.learning-rate"].default == "0.3"
    assert listed["--rule.order"].kind == "one of first, second"
    assert listed["--note"].kind == "text or null"
    assert flag("a_b.c_d") == "--a-b.c-d"


# plain values


def test_mapping_there_and_back():
    made = job(rule={"steps": 9}, rules=[{}], out="x", extra={"b": 1, "a": (1, 2)})
    plain = json.loads(json.dumps(to_mapping(made)))
    assert from_mapping(Job, plain, "again") == job(rule={"steps": 9}, rules=[{}], out="x", extra={"b": 1, "a": [1, 2]})
    assert list(plain)[:3] == ["method", "length", "seeds"]
    assert list(plain["extra"]) == ["a", "b"]
    with pytest.raises(TypeError, match="has no form in JSON"):
        to_mapping({"x": {1, 2}})


def test_a_setting_that_came_later_changes_no_hash_until_it_is_used():
    @dataclass(frozen=True)
    class Before:
        steps: int = 5

    @dataclass(frozen=True)
    class After(Before):
        files: tuple[Path, ...] = field(default=(), metadata={"omit_from_hash_if_default": True})

    assert to_mapping(After()) == to_mapping(Before()) == {"steps": 5}
    assert to_mapping(After(files=(Path("a"),))) == {"steps": 5, "files": ["a"]}
    assert from_mapping(After, to_mapping(After()), "again") == After()


def test_hashes_follow_content_only():
    assert stable_hash(job()) == stable_hash(Job("spot")) != stable_hash(job(length=21))
    assert stable_hash(job(extra={"a": 1, "b": 2})) == stable_hash(job(extra={"b": 2, "a": 1}))
    text = b'{"learning_rate": 0.3, "order": "first", "steps": 5}'
    assert stable_hash(Rule()) == hashlib.sha256(text).hexdigest()[:16], "stored results are keyed by it"


# YAML


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    text = """
    answers: [yes, no, on, off, y, N]
    truths: [true, False]
    numbers: [1e-3, 1E3, 1.5, -2, .5, +3, 6.02e23, .inf]
    words: [007, 0o17, 0x1F, 1_000, 12:30:45, 2024-01-01, 1.2.3, e5, "1", -]
    nothing: [null, ~, ]
    empty:
    """
    assert load_yaml(written(tmp_path, text.replace('"1", -]', '"1"]'))) == {
        "answers": ["yes", "no", "on", "off", "y", "N"],
        "truths": [True, False],
        "numbers": [0.001, 1000.0, 1.5, -2, 0.5, 3, 6.02e23, float("inf")],
        "words": ["007", "0o17", "0x1F", "1_000", "12:30:45", "2024-01-01", "1.2.3", "e5", "1"],
        "nothing": [None, None],
        "empty": None,
    }


def test_anchors_merges_and_json_work(tmp_path):
    text = "base: &b {steps: 1, order: first}\nrule:\n  <<: *b\n  steps: 2\n"
    assert load_yaml(written(tmp_path, text))["rule"] == {"steps": 2, "order": "first"}
    assert load_yaml(written(tmp_path, json.dumps(to_mapping(job())))) == to_mapping(job())
    assert load_yaml(written(tmp_path, "# nothing\n")) == {}


def test_the_loader_does_not_change_other_yaml_users():
    assert yaml.safe_load("a: yes") == {"a": True}


BILLION_LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "job.yaml, line 4: key 'c' is given twice; keep one"),
        ("a: [1, 2\nb: 3\n", "job.yaml, line 2: "),
        ("a: 1\n\tb: 2\n", "job.yaml, line 2: "),
        ("a: 1\nb: !function utils.go\n", "job.yaml, line 2: '!function' runs Python code"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            "job.yaml, line 1: could not determine a constructor",
        ),
        ("- a\n- b\n", "job.yaml: expected 'key: value' lines; got a list"),
        ("{{a: 1}: 3}", "job.yaml, line 1: found unhashable key"),
        ("a: &a [x, *a]\n", "job.yaml: not YAML: its aliases (*name) stand for more than"),
        (BILLION_LAUGHS, "job.yaml: not YAML: its aliases (*name) stand for more than"),
        (b"a: \xff\n", "job.yaml line 1: not UTF-8 (byte 0xff at offset 3"),
        (b"a: \x00\n", "job.yaml line 1: a NUL character"),
        ("[" * 5000, "job.yaml: not YAML"),
    ],
)
def test_broken_yaml_names_file_and_line(tmp_path, text, message):
    with pytest.raises(SpecError) as caught:
        load_yaml(written(tmp_path, text))
    assert message in str(caught.value)


def test_the_line_of_a_key(tmp_path):
    path = written(tmp_path, "a: 1\nb:\n  c: [1,\n    2]\n  d: {e: 1}\n")
    lines = {"a": 1, "b": 2, "b.c": 3, "b.c[1]": 3, "b.d.e": 5, "b.d.x": 5, "x": None}
    assert {key: line_of_key(path, key) for key in lines} == lines


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "nowhere.yaml")


@dataclass(frozen=True)
class Career:
    first: Rule = field(default_factory=lambda: Rule(steps=200))
    job: Job = field(default_factory=lambda: Job("spot", rule=Rule(learning_rate=0.1)))


def test_part_of_a_nested_config_leaves_the_rest_at_the_defaults_of_its_field():
    made = from_mapping(Career, {"first": {"order": "second"}, "job": {"rule": {"steps": 7}}}, "c.yaml")
    assert made.first == Rule(200, 0.3, "second")
    assert made.job == Job("spot", rule=Rule(7, 0.1))


def test_help_shows_the_defaults_that_count():
    assert {s.flag: s.default for s in list_settings(Career)}["--first.steps"] == "200"
    assert {s.flag: s.default for s in list_settings(Career)}["--job.rule.learning-rate"] == "0.1"
    assert {s.flag: s.default for s in list_settings(Career)}["--job.method"] == '"spot"'


@pytest.mark.parametrize("text", ["yes", "1e-3", "null", "~", "", "0o7", "a: b\n# c", "1.0", "true", "- x", "é"])
def test_a_written_config_is_read_back_as_it_was(tmp_path, text):
    made = Job(text, note=text, seeds=(), extra={text or "k": [text, 1e22, 1e-5, True, None]})
    path = written(tmp_path, to_yaml(to_mapping(made)))
    assert from_mapping(Job, load_yaml(path), "again") == made


def test_flags_deep_in_a_free_mapping_are_read_and_can_be_written() -> None:
    @dataclass(frozen=True)
    class Free:
        options: Mapping[str, Any] = field(default_factory=dict)

    given = apply_overrides({}, {"options.rule": "svgd", "options.rule-options.particles": "3"})
    made = from_mapping(Free, given, "command line")
    assert made.options == {"rule": "svgd", "rule_options": {"particles": 3}}
    assert "particles: 3" in to_yaml(to_mapping(made))


def test_old_names_of_settings_are_read_at_any_depth_and_hashed_still():
    old = {"target": {"select_every": 3, "looks": [1, 2]}}
    made = from_mapping(Settings, old, "plan.yaml")
    assert (made.target.eval_every, made.target.eval_steps) == (3, (1, 2))
    assert made.target.steps == Settings().target.steps
    assert to_mapping(made)["target"]["eval_every"] == 3
    assert to_mapping(made, for_hash=True)["target"] | old["target"] == to_mapping(made, for_hash=True)["target"]
    both = {"target": {"select_every": 3, "eval_every": 4}}
    with pytest.raises(SpecError, match=r"in 'target': unknown key 'select_every'; did you mean 'eval_every'"):
        from_mapping(Settings, both, "plan.yaml")
