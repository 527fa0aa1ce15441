"""Templates: how a row becomes text. A template is compiled once and can run no code but Jinja's own."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.readers import Row

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
ROW_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Template:
    """A compiled template. `columns` are the columns it reads; `evaluate` gives a row's value.

    A plain column name, or a template that is one `{{ expression }}`, gives the value as it is (a number, a
    list); everything else gives text. This is how lm-eval's doc_to_choice and doc_to_target give lists.
    """

    source: str
    columns: tuple[str, ...]
    evaluate: Callable[[Row], object]

    def value(self, row: Row, where: str, key: str) -> object:
        """The row's value. Raises DataError, naming place and column, for a missing or null column."""
        try:
            value = self.evaluate(row)
            if isinstance(value, Undefined):
                str(value)  # raises, and says which name is undefined
        except ROW_ERRORS as error:
            raise DataError(f"{where}: {key}: {self.explain(row, error)}") from None
        if is_null(value):
            raise DataError(f"{where}: {key}: {self.explain(row, None)}")
        return value

    def explain(self, row: Row, error: Exception | None) -> str:
        """Why this row cannot be rendered: a missing column, a null one, or what Jinja says."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            return (
                f"missing column {', '.join(map(repr, missing))} in {self.source!r} "
                f"(columns: {', '.join(row)}){constant_hint(self.source)}"
            )
        null = [name for name in self.columns if is_null(row[name])]
        if null:
            return f"column {', '.join(map(repr, null))} is {'null' if row[null[0]] is None else 'NaN'}"
        return f"{self.source!r} fails: {error or 'it gives null'}"


def constant_hint(source: str) -> str:
    """How to write constant text, where a bare word was read as a column."""
    return f"; write {{{{ {source!r} }}}} if it is text" if IDENTIFIER.fullmatch(source) else ""


def is_null(value: object) -> bool:
    """None, NaN, an undefined name, or a list that holds one."""
    if isinstance(value, list | tuple):
        return any(map(is_null, value))
    return value is None or isinstance(value, Undefined) or (isinstance(value, float) and math.isnan(value))


def refuse_null(value: object) -> object:
    """What Jinja writes into text: anything but a null, which would read 'None' or 'nan'."""
    if is_null(value) and not isinstance(value, Undefined):
        raise ValueError("it gives null")
    return value


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as lm-eval sets it up (strict names, trailing newlines kept, regex_replace), in a sandbox."""
    jinja = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, finalize=refuse_null, autoescape=False
    )
    jinja.filters["regex_replace"] = regex_replace
    return jinja


def regex_replace(text: str, pattern: str, replacement: str = "", count: int = 0) -> str:
    """lm-eval's filter: `re.sub` with the text first."""
    return re.sub(pattern, replacement, str(text), count=count)


@lru_cache(maxsize=4096)
def compile_template(source: str, where: str = "template") -> Template:
    """A column name, a Jinja template or plain text as a Template. Raises SpecError for bad Jinja."""
    if IDENTIFIER.fullmatch(source):
        return Template(source, (source,), lambda row: row[source])
    jinja = environment()
    try:
        tree = jinja.parse(source)
        columns = columns_of(tree)
        if is_expression(tree):
            expression = jinja.compile_expression(expression_of(source), undefined_to_none=False)
            return Template(source, columns, lambda row: expression({"doc": row, **row}))
        text = jinja.from_string(source)
        return Template(source, columns, lambda row: text.render({"doc": row, **row}))
    except TemplateSyntaxError as error:
        raise SpecError(f"{where}: bad Jinja in {source!r}: {error.message}") from None


def columns_of(tree: nodes.Template) -> tuple[str, ...]:
    """The columns a template reads, by name or, where a name has spaces, as `doc['a name']`."""
    names = meta.find_undeclared_variables(tree) - {"doc"}
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and item.node.name == "doc" and isinstance(item.arg, nodes.Const):
            names.add(item.arg.value)
    return tuple(sorted(names))


def is_expression(tree: nodes.Template) -> bool:
    """Whether a template is one `{{ ... }}` and nothing else."""
    body = tree.body
    if len(body) != 1 or not isinstance(body[0], nodes.Output):
        return False
    return len(body[0].nodes) == 1 and not isinstance(body[0].nodes[0], nodes.TemplateData)


def expression_of(source: str) -> str:
    """What stands between the braces of `{{ ... }}`, whitespace control stripped."""
    return re.sub(r"^\{\{[-+]?|[-+]?\}\}$", "", source.strip())
