"""The one YAML dialect of plans, presets and task specs: YAML 1.2's core schema, as safe data.

`yes` is text, `1e-3` a number, a date text; a key given twice is refused, and so are aliases that blow up.
"""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

from promptprior.errors import SpecError
from promptprior.untrusted import ESCAPED_SURROGATE, MOST_DIGITS, read_utf8

MOST_BYTES = 2**18  # of a file; the longest plan or spec here has a few thousand
MOST_NODES = 200_000  # of a document with every alias written out; the built-in tasks have a few hundred

NUMBER = r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
SCALARS = (  # YAML 1.2's core schema: name, what it looks like, how it can begin
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", rf"{NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)


def _by_first(words: Iterable[tuple[str, Any, Iterable[str]]]) -> dict[str, list[tuple[str, Any]]]:
    # Tags and patterns as ruamel reads them: by the first character of a word.
    return {
        first: [(tag, pattern) for tag, pattern, starts in words if first in starts]
        for first in {first for _, _, starts in words for first in starts}
    }


class _CoreResolver(VersionedResolver):
    """What an unquoted word is; whatever fits none of these is text."""

    versioned_resolver = _by_first([(f"tag:yaml.org,2002:{n}", re.compile(f"^({p})$"), s) for n, p, s in SCALARS])


class _CautiousResolver(VersionedResolver):
    """For writing: quotes every text that YAML 1.1 or 1.2 would read as something else."""

    versioned_resolver = _by_first([rule[1:] for rule in implicit_resolvers])


class _BoundedConstructor(SafeConstructor):
    """Refuses aliases that, written out, would not fit in memory ("a billion laughs"), and numbers without end."""

    def construct_document(self, node: Node) -> Any:
        sizes: dict[int, float] = {}

        def size(part: Any) -> float:
            if isinstance(part, tuple):  # a key and its value
                return size(part[0]) + size(part[1])
            if id(part) not in sizes:
                if part.tag == "tag:yaml.org,2002:int" and len(part.value) > MOST_DIGITS:
                    reason = f"a number of {len(part.value):,} digits; put it in quotes if it is meant as text"
                    raise MarkedYAMLError(problem=reason, problem_mark=part.start_mark)
                sizes[id(part)] = float("inf")  # met again inside itself: a cycle
                children = part.value if isinstance(part.value, list) else ()
                sizes[id(part)] = 1 + sum(map(size, children))
            return sizes[id(part)]

        if size(node) > MOST_NODES:
            raise YAMLError(f"its aliases (*name) stand for more than {MOST_NODES:,} values; write them out")
        return super().construct_document(node)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ruamel's YAMLError, RecursionError or ValueError."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor = _CoreResolver, _BoundedConstructor
    return yaml.load(text)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file; an empty file is an empty mapping.

    Raises SpecError naming file and line for broken YAML, a key given twice, an unknown tag, or anything but a
    mapping on top.
    """
    text = read_utf8(path, SpecError, MOST_BYTES)
    try:
        value = parse_yaml(text)
        if surrogate := ESCAPED_SURROGATE.search(text):  # a pair is a character, one alone has no UTF-8
            json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError:
        assert surrogate is not None
        raise SpecError(f"{path}: {surrogate[0]} is half of a surrogate pair; write the character itself") from None
    except RecursionError as error:
        raise SpecError(f"{path}: not YAML: nested too deep") from error
    except MarkedYAMLError as error:
        mark, problem = error.problem_mark or error.context_mark, str(error.problem)
        if "!function" in problem:
            problem = (
                "'!function' runs Python code, which promptprior never does; write the step as a Jinja template "
                "(doc_to_text, doc_to_target, doc_to_choice, doc_filter)"
            )
        if twice := re.match('found duplicate key "(.*?)" with', problem):
            problem = f"key {twice[1]!r} is given twice; keep one"
        raise SpecError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {problem}") from error
    except (YAMLError, ValueError) as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SpecError(f"{path}: expected 'key: value' lines; got a {type(value).__name__}")
    return value


def line_of_key(path: Path, key: str) -> int | None:
    """The line of a dotted key ("settings.target.steps") in a YAML file; None where it does not stand there."""
    node, line = YAML(typ="safe", pure=True).compose(path), None
    for name in key.split("[")[0].split("."):
        pairs = node.value if node is not None and isinstance(node.value, list) else ()
        under = [pair for pair in pairs if isinstance(pair, tuple) and pair[0].value == name]
        if not under:
            return line
        line, node = under[0][0].start_mark.line + 1, under[0][1]
    return line


def to_yaml(value: Any) -> str:
    """Plain values as YAML in the order given. Words that any YAML version would not read as text are quoted."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.Resolver = _CautiousResolver
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 110
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.dump(value, text)
    return text.getvalue()
