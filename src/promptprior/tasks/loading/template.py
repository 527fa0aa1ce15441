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
            if not is_null(value):
                return value
            reason = f"{self.source!r} fails: it gives null"
        except ROW_ERRORS as error:
            reason = f"{self.source!r} fails: {error}"
        missing = [name for name in self.columns if name not in row]
        if missing:  # a bare word was read as a column, but may be meant as text
            hint = f"; write {{{{ {self.source!r} }}}} if it is text" if IDENTIFIER.fullmatch(self.source) else ""
            listed = ", ".join(map(repr, missing))
            reason = f"missing column {listed} in {self.source!r} (columns: {', '.join(row)}){hint}"
        elif null := [name for name in self.columns if is_null(row[name])]:
            reason = f"column {', '.join(map(repr, null))} is {'null' if row[null[0]] is None else 'NaN'}"
        raise DataError(f"{where}: {key}: {reason}")


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


# Jinja as lm-eval sets it up (strict names, trailing newlines kept, its filter regex_replace), in a sandbox
JINJA = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, finalize=refuse_null, autoescape=False
)
JINJA.filters["regex_replace"] = lambda text, pattern, replacement="", count=0: re.sub(
    pattern, replacement, str(text), count=count
)


@lru_cache(maxsize=4096)
def compile_template(source: str, where: str = "template") -> Template:
    """A column name, a Jinja template or plain text as a Template. Raises SpecError for bad Jinja."""
    if IDENTIFIER.fullmatch(source):
        return Template(source, (source,), lambda row: row[source])
    try:
        tree = JINJA.parse(source)
        names = meta.find_undeclared_variables(tree) - {"doc"}
        for item in tree.find_all(nodes.Getitem):  # a name with spaces is written doc['a name']
            if isinstance(item.node, nodes.Name) and item.node.name == "doc" and isinstance(item.arg, nodes.Const):
                names.add(item.arg.value)
        columns = tuple(sorted(names))
        outputs = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
        if len(outputs) == 1 and not isinstance(outputs[0], nodes.TemplateData):
            # the template is one {{ expression }}: its value, not its text
            inner = re.sub(r"^\{\{[-+]?|[-+]?\}\}$", "", source.strip())
            expression = JINJA.compile_expression(inner, undefined_to_none=False)
            return Template(source, columns, lambda row: expression({"doc": row, **row}))
        text = JINJA.from_string(source)
        return Template(source, columns, lambda row: text.render({"doc": row, **row}))
    except TemplateSyntaxError as error:
        raise SpecError(f"{where}: bad Jinja in {source!r}: {error.message}") from None
