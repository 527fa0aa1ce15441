"""Frozen dataclasses to and from plain values: settings of plan files and flags, headers of artifacts, result rows.

A config is an ordinary frozen dataclass. Its fields say the type, the default and, in `field(metadata={"help": ...})`,
what they mean; nothing is registered anywhere. Reading is strict: every key known, every value of its type.
"""

import hashlib
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union

from ruamel.yaml.error import YAMLError

from promptprior.config.yaml_file import parse_yaml
from promptprior.errors import SpecError, unknown_name


class Config(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Config)


class FlagText(str):
    """Text given on the command line: what it means is decided by the type of the setting it is for."""


@dataclass(frozen=True)
class Setting:
    """One field of a config as help texts show it; `default` is None for a setting that must be given."""

    key: str
    kind: str
    default: str | None
    help: str

    @property
    def flag(self) -> str:
        """The flag as it is typed."""
        return flag(self.key)


def flag(key: str, prefix: str = "--") -> str:
    """The command-line flag of a dotted key; the settings that all methods share go without their prefix.

    >>> flag("rule.learning_rate"), flag("settings.target.steps")
    ('--rule.learning-rate', '--target.steps')
    """
    return prefix + key.removeprefix("settings.").replace("_", "-")


def list_settings(cls: type[Config], key: str = "", default: object = MISSING) -> Iterator[Setting]:
    """Every setting of a config, nested ones under their dotted keys, in the order written.

    `default` is the config whose values are the defaults, where a field of that type has one of its own.
    """
    for name, (item, hint) in _known_fields(cls)[0].items():
        value = _default_of(item) if default is MISSING else getattr(default, name)
        dotted = f"{key}.{name}" if key else name
        if is_dataclass(hint):
            yield from list_settings(hint, dotted, value)  # type: ignore[arg-type]
        else:
            text = None if value is MISSING else json.dumps(to_mapping(value), ensure_ascii=False)
            yield Setting(dotted, kind_name(hint), text, item.metadata.get("help", ""))


def settings_named(name: str, known: Sequence[Setting]) -> list[Setting]:
    """The settings that a name means: of that whole key, or else those whose key ends with it."""
    key = name.replace("-", "_")
    whole = [s for s in known if s.key in (key, f"settings.{key}")]
    return whole or [s for s in known if s.key.endswith(f".{key}")]


# To plain values -----------------------------------------------------------------------------------------


def to_mapping(value: Any, *, for_hash: bool = False, complete: bool = False) -> Any:
    """A config as plain JSON values: fields in the order written, free mappings sorted by key.

    A field with `omit_from_hash_if_default` in its metadata is left out while it has its default, and one with
    `omit_from_hash_if` while that function of the config says so: a setting that came later changes no hash of what was
    made before it. A `fact` of a method is written though no setting changes it. `for_hash` writes a renamed field
    under its first name (its metadata's `formerly`), and fields that are `hash_only`: revisions of what a setting
    means. `complete` writes what is left out at its default too. The inverse of `from_mapping`. Raises TypeError for
    values that JSON has no form for.
    """
    if is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for item in fields(value):
            rule, current = item.metadata.get, getattr(value, item.name)
            is_default = rule("omit_from_hash_if_default") and current == _default_of(item)
            is_omitted = is_default or ((omit_if := rule("omit_from_hash_if")) is not None and omit_if(value))
            is_omitted = is_omitted and not (complete and item.init and not rule("fact"))
            if (item.init or rule("fact") or (for_hash and rule("hash_only"))) and not is_omitted:
                part = to_mapping(current, for_hash=for_hash, complete=complete)
                plain[(for_hash and rule("formerly")) or item.name] = part
        return plain
    if isinstance(value, Mapping):
        return {str(name): to_mapping(value[name], for_hash=for_hash) for name in sorted(value, key=str)}
    if isinstance(value, tuple | list):
        return [to_mapping(item, for_hash=for_hash) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a setting cannot hold {value!r} ({type(value).__name__}): it has no form in JSON")


def stable_hash(value: Any) -> str:
    """Sixteen hex digits over a config or plain value: equal for equal settings, on every machine.

    >>> stable_hash({"a": 1, "b": (2,)}) == stable_hash({"b": [2], "a": 1})
    True
    """
    text = json.dumps(to_mapping(value, for_hash=True), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def apply_overrides(
    mapping: Mapping[str, object], overrides: Mapping[str, str | Mapping[str, str]]
) -> dict[str, object]:
    """The mapping with flags laid over it: dotted keys, dashes as good as underscores; texts, or texts by key.

    >>> apply_overrides({"rule": {"steps": 5}}, {"rule.learning-rate": "0.3"})
    {'rule': {'steps': 5, 'learning_rate': '0.3'}}
    """
    result = dict(mapping)
    for dotted, text in overrides.items():
        *outer, last = dotted.replace("-", "_").split(".")
        inner = result
        for name in outer:
            value = inner.get(name, {})
            if not isinstance(value, Mapping):
                raise SpecError(f"flag --{dotted}: {name!r} is {value!r}, which has no settings of its own")
            inner[name] = copy = dict(value)  # the mapping that was given stays as it is
            inner = copy
        inner[last] = FlagText(text) if isinstance(text, str) else {key: FlagText(part) for key, part in text.items()}
    return result


def merge_settings(given: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """A mapping laid over another one, nested mappings too.

    >>> merge_settings({"a": {"x": 1}}, {"a": {"x": 0, "y": 2}, "b": 3})
    {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    merged = dict(defaults)
    for key, value in given.items():
        below = defaults.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = merge_settings(value, below) if both else value  # type: ignore[arg-type]
    return merged


def flat_items(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as dotted names and values.

    >>> list(flat_items({"b": {"y": 1, "x": 2}, "a": 3}))
    [('b.y', 1), ('b.x', 2), ('a', 3)]
    """
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# From plain values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    # Where a value stands, for errors: the file, or what tells it from the key; the key; how keys are typed as flags.
    where: str | Callable[[str], str]
    key: str
    flags: str | None

    def __truediv__(self, part: str | int) -> "_Place":
        dotted = f"{self.key}[{part}]" if isinstance(part, int) else f"{self.key}.{part}" if self.key else part
        return _Place(self.where, dotted, self.flags)

    def __str__(self) -> str:
        return self.where if isinstance(self.where, str) else self.where(self.key)

    @property
    def typed(self) -> str:
        return "" if self.flags is None else f" (flag {flag(self.key, self.flags)})"

    def error(self, text: str) -> SpecError:
        return SpecError(f"{self}: {self.key!r}{self.typed} {text}")


def from_mapping(
    cls: type[C],
    mapping: Mapping[str, object],
    where: str | Callable[[str], str],
    key: str = "",
    flags: str | None = None,
    default: object = MISSING,
) -> C:
    """A config from plain values, every key known and every value of its type.

    `where` names the file or "command line" in errors, or gives that name for a dotted key; `key` is the dotted place
    of the mapping in it. `flags` is what stands before a key where it is a flag: `--` or `--options.`. What is not
    given is as in the config `default`, without one as in the defaults of the fields; of a nested config too. Whole
    numbers pass as floats and whole floats as integers; numbers are finite; lists become tuples. Of a union the first
    type that fits counts. Raises SpecError naming the place, the key, its flag and what was expected.
    """
    (known, newer), place, values, missing = _known_fields(cls), _Place(where, key, flags), {}, []
    if newer:  # files may use the name that a field had first, unless they use the newer one too
        mapping = {name if newer.get(name, name) in mapping else newer[name]: value for name, value in mapping.items()}
    for name in mapping:
        if name not in known:
            wrong, inside = place / str(name), f" in {key!r}" if key else ""
            raise SpecError(f"{wrong}{inside}: {unknown_name('key', str(name), known)}{wrong.typed}")
    for name, (item, hint) in known.items():
        own = _default_of(item) if default is MISSING else getattr(default, name)
        if name in mapping:
            value = mapping[name]
            if type(value) is not hint or hint is float:  # most values of most files need no more
                value = _convert(value, hint, place / name, own)
            if problem := bounds_problem(item, value, flags and flag((place / name).key, flags)):
                raise SpecError(f"{place / name}: {problem}")
            values[name] = value
        elif own is MISSING:
            missing.append(name)
        else:
            values[name] = own
    if missing:
        item, hint = known[missing[0]]
        meaning = f": {item.metadata['help']}" if "help" in item.metadata else ""
        others = f" (missing too: {', '.join(missing[1:])})" if missing[1:] else ""
        raise (place / missing[0]).error(f"is missing; give {kind_name(hint)}{meaning}{others}")
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{place}: {key + ': ' if key else ''}{error}") from error


def bounds_problem(item: Field[Any], value: object, typed: str | None) -> str:
    """What is wrong with a field's number, or with a number of its tuple; "" where all are within their bounds.

    Bounds stand in the field's metadata: `least`, `above` and `most`, `at_least_one` for a tuple that must not be
    empty. None passes, NaN never does. `typed` is the flag that sets the field, if one does.
    """
    least, above, most, at_least_one = map(item.metadata.get, ("least", "above", "most", "at_least_one"))
    if least is above is most is at_least_one is None:
        return ""
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    bad = [
        n
        for n in numbers
        if not ((least is None or n >= least) and (above is None or n > above) and (most is None or n <= most))
    ]
    if not bad and (numbers or not at_least_one):
        return ""
    too_large = most is not None and any(n > most for n in bad)
    bounds = {"at least": least, "more than": above, "at most": most if too_large else None}
    expected = " and ".join(
        f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"
        for word, bound in bounds.items()
        if bound is not None
    )
    if isinstance(value, tuple):
        expected = f"at least one number{', each ' + expected if expected else ''}"
    or_null = ", or null for none" if _default_of(item) is None else ""
    what = f"{item.name.replace('_', ' ')} {shorten(value)}{f' ({typed})' if typed else ''}"
    return f"{what}: expected {expected or 'a number'}{or_null}"


def check_bounds(config: Any, flags: str = "--") -> None:
    """Raise SpecError for a number of a config that is out of its field's bounds, naming value and flag."""
    for item in fields(config):
        if problem := bounds_problem(item, getattr(config, item.name), flags + item.name.replace("_", "-")):
            raise SpecError(problem)


def shorten(value: object, most: int = 200) -> str:
    """A value as an error shows it, however long it is."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


@cache
def _known_fields(cls: type[Config]) -> tuple[dict[str, tuple[Field[Any], Any]], dict[str, str]]:
    # Field and type by name, and the names of today by those that fields had first: slow, and a grid has thousands of
    # rows.
    hints = typing.get_type_hints(cls)
    known = {item.name: (item, hints[item.name]) for item in fields(cls) if item.init and not item.metadata.get("fact")}
    return known, {old: name for name, (item, _) in known.items() if (old := item.metadata.get("formerly"))}


def _default_of(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


PLAIN: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    types.NoneType: "null",
    Any: "any value",
    object: "any value",
}


def kind_name(hint: Any) -> str:
    """A type in the words of an error or help text.

    >>> kind_name(tuple[int, ...] | None)
    'a list (each a whole number) or null'
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(kind_name, inner))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list (each {kind_name(inner[0])})"
    if origin is tuple:
        return f"a list of {len(inner)} ({', '.join(map(kind_name, inner))})"
    return "'key: value' settings"


def _convert(value: Any, hint: Any, place: _Place, default: object = MISSING) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if types.NoneType in inner and (value is None or (type(value) is FlagText and value in ("null", "none"))):
            return None
        members, errors = [member for member in inner if member is not types.NoneType], []
        for member in members:
            try:
                return _convert(value, member, place, default)
            except SpecError as error:
                errors.append(error)
        if len(members) == 1 or isinstance(value, list | Mapping):  # its parts say what is wrong
            raise errors[-1]
        raise place.error(f"is {value!r}; expected {kind_name(hint)}")
    if type(value) is FlagText or hint in (Any, object):
        value = _read_flags(value, hint)
    if hint in PLAIN:
        if hint in (Any, object) or (type(value) is hint and hint is not float):
            return value
        if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        if hint is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if hint is Path and isinstance(value, str | Path) and str(value):
            return Path(value)
        expected = f"{kind_name(hint)}; put it in quotes if it is meant as text" if hint is str else kind_name(hint)
        expected = "a finite number" if type(value) is float and hint is float else expected
        raise place.error(f"is {value!r}; expected {expected}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise place.error(f"is {value!r}; expected a list, like [a, b]")
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise place.error(f"has {len(value)} items; expected {len(inner)}")
        hints = inner if inner[-1] is not Ellipsis else inner[:1] * len(value)
        return tuple(
            item if type(item) is each and each in (str, int) else _convert(item, each, place / i)
            for i, (item, each) in enumerate(zip(value, hints, strict=True))
        )
    if isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, Mapping):
            own = default if isinstance(default, hint) else MISSING
            return from_mapping(hint, value, place.where, place.key, place.flags, own)
        if isinstance(value, hint):
            return value
        raise place.error(f"is {value!r}; expected its own settings, as 'key: value' lines below it")
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise place.error(f"is {value!r}; expected 'key: value' settings")
        if inner[1] in (Any, object):
            return {str(name): _read_flags(item) for name, item in value.items()}
        return {str(name): _convert(item, inner[1], place / str(name)) for name, item in value.items()}
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in inner):  # 1 is not true
            return value
        raise place.error(f"is an {unknown_name('choice', str(value), map(str, inner))}")
    raise TypeError(f"{place.key}: a config field cannot have the type {hint!r}")


def _read_flags(value: Any, hint: Any = Any) -> Any:
    # A flag's text is itself, a comma-separated list, or YAML, as its setting wants it; however deep it stands.
    if isinstance(value, Mapping):
        return {name: _read_flags(part) for name, part in value.items()}
    if type(value) is not FlagText:
        return value
    plain = str(value)
    if hint in (str, Path) or (typing.get_origin(hint) is Literal and plain in typing.get_args(hint)):
        return plain
    if typing.get_origin(hint) is tuple and not plain.startswith("["):
        return [FlagText(part.strip()) for part in plain.split(",")] if plain else []
    if hint is bool and plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    try:
        return parse_yaml(plain)
    except (YAMLError, ValueError, RecursionError):
        return plain
