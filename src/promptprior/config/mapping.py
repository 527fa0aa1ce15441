"""Settings: strict frozen dataclasses, built from YAML or JSON files and command-line flags.

A config is an ordinary frozen dataclass. Its fields say the type, the default and, in
`field(metadata={"help": ...})`, what they mean; nothing is registered anywhere.
"""

import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union

import yaml

from promptprior.errors import SpecError, unknown_name


class Config(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Config)


class FlagText(str):
    """Text given on the command line: what it means is decided by the type of the setting it is for."""


@dataclass(frozen=True)
class Place:
    """Where a value stands: the file (or "command line") and the dotted key in it."""

    where: str
    key: str

    def __truediv__(self, name: str) -> "Place":
        return Place(self.where, f"{self.key}.{name}" if self.key else name)

    def error(self, text: str) -> SpecError:
        """A SpecError that names this key and its flag."""
        return SpecError(f"{self.where}: {self.key!r} (flag {flag(self.key)}) {text}")


@dataclass(frozen=True)
class Setting:
    """One field of a config as help texts show it; `default` is None for a setting that must be given."""

    flag: str
    kind: str
    default: str | None
    help: str


def flag(key: str) -> str:
    """The command-line flag of a dotted key.

    >>> flag("rule.learning_rate")
    '--rule.learning-rate'
    """
    return "--" + key.replace("_", "-")


def settings_of(cls: type[Config], key: str = "", default: object = MISSING) -> Iterator[Setting]:
    """Every setting of a config, nested ones under their dotted names, in the order written.

    `default` is the config whose values are the defaults, where a field of that type has one of its own.
    """
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        name, hint = f"{key}.{item.name}" if key else item.name, hints[item.name]
        value = default_of(item) if default is MISSING else getattr(default, item.name)
        if isinstance(hint, type) and is_dataclass(hint):
            yield from settings_of(hint, name, value)
        else:
            yield Setting(flag(name), kind_name(hint), default_text(value), item.metadata.get("help", ""))


def from_mapping(cls: type[C], mapping: Mapping[str, object], where: str, key: str = "") -> C:
    """A config from plain values, every key known and every value of its type.

    `where` names the file or "command line" in errors; `key` is the dotted place of the mapping in it.
    Whole numbers pass as floats and whole floats as integers; lists become tuples. Of a union the first
    type that fits counts. Raises SpecError naming the key, its flag and what was expected.
    """
    place, hints = Place(where, key), typing.get_type_hints(cls)
    known = {item.name: item for item in fields(cls) if item.init and not item.metadata.get("fact")}
    renamed = {old: item.name for item in known.values() if (old := item.metadata.get("formerly"))}
    mapping = {renamed.get(name, name) if renamed.get(name) not in mapping else name: v for name, v in mapping.items()}
    refuse_unknown(mapping, known, place)
    given = {name: over_default(mapping[name], default_of(known[name])) for name in known if name in mapping}
    values = {name: converted(value, hints[name], place / name) for name, value in given.items()}
    for name in known.keys() - values.keys():
        if is_required(known[name]):
            raise missing(known[name], kind_name(hints[name]), place / name)
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError(f"{where}: {key + ': ' if key else ''}{error}") from error


def to_mapping(value: Any, *, for_hash: bool = False) -> Any:
    """A config as plain JSON values: fields in the order written, free mappings sorted by key.

    A field with `omit_from_hash_if_default` in its metadata is left out while it has its default: a setting that came
    later changes no hash of what was made before it. `for_hash` writes a renamed field under its first name (its
    metadata's `formerly`). The inverse of `from_mapping`. Raises TypeError for values that JSON has no form for.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {
            (for_hash and item.metadata.get("formerly")) or item.name: to_mapping(current, for_hash=for_hash)
            for item in fields(value)
            for current in [getattr(value, item.name)]
            if (item.init or item.metadata.get("fact")) and not _is_omitted(item, value, current)
        }
    if isinstance(value, Mapping):
        return {str(name): to_mapping(value[name], for_hash=for_hash) for name in sorted(value, key=str)}
    if isinstance(value, tuple | list):
        return [to_mapping(item, for_hash=for_hash) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a setting cannot hold {value!r} ({type(value).__name__}): it has no form in JSON")


def _is_omitted(item: Field[Any], config: object, current: object) -> bool:
    omit_if = item.metadata.get("omit_from_hash_if")
    at_default = item.metadata.get("omit_from_hash_if_default") and current == default_of(item)
    return bool(at_default or (omit_if is not None and omit_if(config)))


def stable_hash(value: Any) -> str:
    """Sixteen hex digits over a config or plain value: equal for equal settings, on every machine.

    >>> stable_hash({"a": 1, "b": (2,)}) == stable_hash({"b": [2], "a": 1})
    True
    """
    text = json.dumps(to_mapping(value, for_hash=True), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML (or JSON) file, read by YAML 1.2's rules: `yes` is text, `1e-3` a number.

    An empty file is an empty mapping. Raises SpecError naming file and line for broken YAML, a key given
    twice, an unknown tag, or anything but a mapping on top.
    """
    try:
        value = yaml.load(path.read_bytes().decode(), Loader=Yaml)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        raise SpecError(f"{path}{line_of(error)}: {error.problem or 'not YAML'}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected 'key: value' lines; got a {type(value).__name__}")
    return value


def dump_yaml(config: Any) -> str:
    """A config as YAML that `load_yaml` reads back to the same values."""
    return yaml.dump(to_mapping(config), Dumper=YamlWriter, sort_keys=False, allow_unicode=True, width=110)


def apply_overrides(mapping: Mapping[str, object], overrides: Mapping[str, str]) -> dict[str, object]:
    """The mapping with flags laid over it: dotted keys, dashes as good as underscores.

    >>> apply_overrides({"rule": {"steps": 5}}, {"rule.learning-rate": "0.3"})
    {'rule': {'steps': 5, 'learning_rate': '0.3'}}
    """
    result = dict(mapping)
    for dotted, text in overrides.items():
        result = with_value(result, dotted.replace("-", "_").split("."), FlagText(text), dotted)
    return result


# How it is done


NUMBER = r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
SCALARS = (  # YAML 1.2's core schema: name, what it looks like, how it can begin; all else is text
    ("null", r"null|Null|NULL|~|", ("n", "N", "~", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", tuple("-+0123456789")),
    ("float", rf"{NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", tuple("-+.0123456789")),
    ("merge", r"<<", ("<",)),
)


RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    init: [(f"tag:yaml.org,2002:{name}", re.compile(f"^({look})$")) for name, look, b in SCALARS if init in b]
    for init in sorted({init for _, _, begins in SCALARS for init in begins})
}


class Yaml(yaml.SafeLoader):
    """A safe loader with YAML 1.2's scalars and no duplicate keys."""

    yaml_implicit_resolvers = RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; refuses a key given twice, which plain YAML loaders silently drop."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice; keep one", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class YamlWriter(yaml.SafeDumper):
    """A dumper that quotes what YAML 1.2 would not read as text."""

    yaml_implicit_resolvers = RESOLVERS


def line_of(error: yaml.MarkedYAMLError) -> str:
    """ ", line N", where the parser knows it."""
    mark = error.problem_mark or error.context_mark
    return f", line {mark.line + 1}" if mark else ""


def with_value(mapping: Mapping[str, object], keys: Sequence[str], value: object, dotted: str) -> dict[str, object]:
    """The mapping with one nested value replaced; mappings on the way are copied, missing ones made."""
    head, *rest = keys
    if not rest:
        return {**mapping, head: value}
    inner = mapping.get(head, {})
    if not isinstance(inner, Mapping):
        raise SpecError(f"flag --{dotted}: {head!r} is {inner!r}, which has no settings of its own")
    return {**mapping, head: with_value(inner, rest, value, dotted)}


def refuse_unknown(mapping: Mapping[str, object], known: Mapping[str, object], place: Place) -> None:
    """Raise SpecError for the first key that no field has."""
    for name in mapping:
        if name not in known:
            inside = f" in {place.key!r}" if place.key else ""
            raise SpecError(f"{place.where}{inside}: {unknown_name('key', str(name), known)}")


def missing(item: Field[Any], kind: str, place: Place) -> SpecError:
    """The error for a setting that must be given and is not."""
    meaning = f": {item.metadata['help']}" if "help" in item.metadata else ""
    return place.error(f"is missing; give {kind}{meaning}")


def is_required(item: Field[Any]) -> bool:
    """Whether a field has no default."""
    return item.default is MISSING and item.default_factory is MISSING


def default_of(item: Field[Any]) -> Any:
    """The default of a field; MISSING for one without."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def default_text(value: object) -> str | None:
    """A default as help texts print it; None where there is none."""
    return None if value is MISSING else json.dumps(to_mapping(value), ensure_ascii=False)


def over_default(value: object, default: object) -> object:
    """Part of a nested config laid over the default of its field, so that what is not given stays as it was."""
    if not (isinstance(value, Mapping) and is_dataclass(default)):
        return value
    whole = {
        item.name: getattr(default, item.name)
        for item in fields(default)
        if item.init and not item.metadata.get("fact")
    }
    renamed = {str(item.metadata.get("formerly")): item.name for item in fields(default)}
    parts = {renamed.get(str(name), str(name)): part for name, part in value.items()}
    return {**whole, **{name: over_default(part, whole.get(name)) for name, part in parts.items()}}


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


def converted(value: object, hint: Any, place: Place) -> Any:
    """One value as the type of its field. Raises SpecError when it is not one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return first_fit(value, inner, place)
    if isinstance(value, FlagText):
        value = meant(value, hint)
    if origin is tuple:
        return converted_tuple(value, inner, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return converted_config(value, hint, place)
    if origin in (dict, Mapping):
        return converted_mapping(value, inner[1], place)
    if origin is Literal:
        return one_of(value, inner, place)
    return scalar(value, hint, place)


def meant(text: FlagText, hint: Any) -> object:
    """What a flag's text means for a setting of this type: itself, a comma-separated list, or YAML."""
    plain = str(text)
    if hint in (str, Path) or (typing.get_origin(hint) is Literal and plain in typing.get_args(hint)):
        return plain
    if typing.get_origin(hint) is tuple and not plain.startswith("["):
        return [FlagText(part.strip()) for part in plain.split(",")] if plain else []
    try:
        return yaml.load(plain, Loader=Yaml)
    except yaml.YAMLError:
        return plain


def first_fit(value: object, hints: Sequence[Any], place: Place) -> Any:
    """The value as the first of several types that takes it."""
    absent = value is None or (isinstance(value, FlagText) and value in ("null", "none"))
    if absent and types.NoneType in hints:
        return None
    real = [hint for hint in hints if hint is not types.NoneType]
    if len(real) == 1:
        return converted(value, real[0], place)
    for hint in real:
        try:
            return converted(value, hint, place)
        except SpecError:
            continue
    raise place.error(f"is {value!r}; expected {' or '.join(map(kind_name, hints))}")


def converted_tuple(value: object, inner: tuple[Any, ...], place: Place) -> tuple[Any, ...]:
    """A list as a tuple, every item converted."""
    if not isinstance(value, list | tuple):
        raise place.error(f"is {value!r}; expected a list, like [a, b]")
    hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
    if len(hints) != len(value):
        raise place.error(f"has {len(value)} items; expected {len(hints)}")
    pairs = enumerate(zip(value, hints, strict=True))
    return tuple(converted(item, hint, Place(place.where, f"{place.key}[{i}]")) for i, (item, hint) in pairs)


def converted_config(value: object, cls: type[Config], place: Place) -> Any:
    """A mapping as a nested config; a config of that class as itself."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise place.error(f"is {value!r}; expected its own settings, as 'key: value' lines below it")
    return from_mapping(cls, value, place.where, place.key)


def converted_mapping(value: object, hint: Any, place: Place) -> dict[str, Any]:
    """A free mapping with text keys, every value converted."""
    if not isinstance(value, Mapping):
        raise place.error(f"is {value!r}; expected 'key: value' settings")
    return {str(name): converted(item, hint, place / str(name)) for name, item in value.items()}


def one_of(value: object, choices: tuple[Any, ...], place: Place) -> Any:
    """The value, when it is one of the choices (and of the same type: 1 is not true)."""
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    raise place.error(f"is an {unknown_name('choice', str(value), map(str, choices))}")


def read_flags(value: object) -> object:
    """A free value with the flags in it read as YAML, however deep they stand."""
    if isinstance(value, FlagText):
        return meant(value, Any)
    if isinstance(value, Mapping):
        return {name: read_flags(part) for name, part in value.items()}
    return value


def scalar(value: object, hint: Any, place: Place) -> Any:
    """A number, text, truth value, path or anything at all, as the field wants it."""
    if hint not in PLAIN:
        raise TypeError(f"{place.key}: a config field cannot have the type {hint!r}")
    if hint in (Any, object):
        return read_flags(value)
    if type(value) is hint:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    quote = "; put it in quotes if it is meant as text" if hint is str and value is not None else ""
    raise place.error(f"is {value!r}; expected {kind_name(hint)}{quote}")
