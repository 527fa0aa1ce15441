"""Jinja for templates that a stranger wrote: no Python, no chance, and limits on time, steps and size.

A spec is shared like data, so its templates are input. Jinja's sandbox keeps them from Python; what it does not limit
is limited here. The tree of a template is rewritten so that every loop, comparison, joined and written text passes a
function of this module; operators, methods and filters are wrapped. Each counts steps (a turn, a call, a character or
item that is made) on the `METER`, and says no before it makes something too large. Filters whose text differs between
two loads (`random`), that reach attributes (`attr`) or write HTML are not there.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from functools import wraps
from itertools import islice
from threading import local
from typing import Any, cast
from uuid import UUID

import regex
from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.environment import Template, TemplateExpression
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 2**21  # of one value of one row: turns of loops, calls, characters and items made
MOST_SECONDS = 1.0  # of CPU, for one value of one row
MOST_WIDTH = 2**18  # a whole number that a method or filter takes: a width, a count, a number of digits
MOST_UNCHECKED = 2**27  # characters that one method or filter may make before its result is counted
MOST_BITS = 4096  # of a whole number


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS = _words(
    "abs batch capitalize center count d default dictsort filesizeformat first float format groupby indent int items "
    "join last length list lower map max min reject rejectattr replace reverse round select selectattr slice sort "
    "string sum title tojson trim truncate unique upper urlencode wordcount wordwrap"
)
METHODS: Mapping[type, frozenset[str]] = {
    str: _words(
        "capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal "
        "isdigit isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith "
        "strip swapcase title upper zfill"
    ),
    bytes: _words(""),
    int: _words("bit_length is_integer"),
    float: _words("is_integer"),
    list: _words("count index"),
    tuple: _words("count index"),
    dict: _words("get items keys values"),
}
WRITABLE = (str, int, float, Decimal, date, time_of_day, timedelta, UUID)  # whose text is the same at each load
# methods and filters whose whole numbers say how much they make
WITH_WIDTHS = _words("batch center indent ljust regex_replace replace rjust round slice truncate wordwrap zfill")
TOO_LARGE = f"it makes something too large (more than {MOST_STEPS:,} characters or items, or huge numbers)"
PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?")
BRACE_WIDTH = re.compile(r"\{[^{}]*:([^{}]*)([{}])")


class LimitError(Exception):
    """A template that takes too long or makes something too large."""


class StepMeter(local):
    """What the value that is being made has cost so far, in this thread."""

    steps = 0
    deadline = float("inf")

    def reset(self) -> None:
        """Begin a new value."""
        self.steps, self.deadline = 0, time.thread_time() + MOST_SECONDS

    def spend(self, steps: int) -> None:
        """Count steps. Raises LimitError when there are too many or the time is over."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise LimitError(f"it takes more than {MOST_STEPS:,} steps (turns of loops, characters and items made)")
        if time.thread_time() > self.deadline:
            raise LimitError(f"it takes more time than {MOST_SECONDS:g} s")

    def turns(self, values: Iterable[Any]) -> Iterator[Any]:
        """What a loop runs over, a step for each turn."""
        for value in values:
            self.spend(1)
            yield value

    def compared(self, value: Any) -> Any:
        """A value that is compared or hashed, whose size has an end."""
        written_size(value)
        self.spend(1)
        return value

    def joined(self, values: list[Any]) -> str:
        """Values as one text, a step for each character."""
        for value in values:
            self.spend(written_size(value))
        return "".join(map(str, values))


METER = StepMeter()


def written_size(value: object) -> int:
    """Characters and items of a value with all that it holds written out. Raises LimitError beyond MOST_STEPS."""
    if isinstance(value, str):
        return len(value)
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        total += len(item) if isinstance(item, str | bytes) else 1
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        if total + len(waiting) > MOST_STEPS:  # a list that holds a list twice that holds a list twice ...
            raise LimitError(TOO_LARGE)
    return total


def is_null(value: object) -> bool:
    """None, NaN, an undefined name, or a list that holds one."""
    if isinstance(value, list | tuple):
        return any(map(is_null, value))
    return value is None or isinstance(value, Undefined) or (isinstance(value, float) and value != value)


@pass_context  # so that nothing is written while the template compiles
def write(_: Context, value: object) -> object:
    """What Jinja writes into text: no null, which would read 'None', and nothing whose text is Python's."""
    if isinstance(value, Undefined):
        return value  # its text is the error that says which name is undefined
    if value is None or value != value:  # None, NaN
        raise ValueError("it gives null")
    check_writable(value)
    METER.spend(len(value) if isinstance(value, str) else len(str(value)))
    return value


def check_writable(value: object) -> None:
    """Raise ValueError for what has no text of its own: lists, objects, bytes, functions."""
    if not isinstance(value, WRITABLE):
        advice = "; write its items with | join" if isinstance(value, list | tuple) else ""
        raise ValueError(f"it gives a {type(value).__name__} where text is expected{advice}")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with every way to make something large or to work without end on the `METER`."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        # strict names and kept newlines, as in lm-eval; nothing is computed while a template compiles
        super().__init__(
            undefined=StrictUndefined, keep_trailing_newline=True, finalize=write, autoescape=False, optimized=False
        )
        self.globals.pop("lipsum")  # random text
        self.filters = {name: _metered(name, function) for name, function in self.filters.items() if name in FILTERS}
        self.filters["regex_replace"] = _metered("regex_replace", regex_replace)  # lm-eval's
        self.tests = {name: _metered("", cast(Callable[..., Any], function)) for name, function in self.tests.items()}
        # what the rewritten tree calls
        self.filters |= {
            "metered_turns": METER.turns,
            "metered_value": METER.compared,
            "metered_text": METER.joined,
        }

    def template(self, tree: nodes.Template) -> Template:
        """A parsed template, made safe and compiled; it is the tree's last use."""
        _Metered().visit(tree)  # in place
        return self.from_string(tree)

    def expression(self, tree: nodes.Expr) -> TemplateExpression:
        """An expression of a parsed template, made safe and compiled: a call gives its value and not its text."""
        result = nodes.Assign(nodes.Name("result", "store"), tree, lineno=1)  # as Environment.compile_expression does
        module = nodes.Template([result], lineno=1)
        module.set_environment(self)
        return TemplateExpression(self.template(module), undefined_to_none=False)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: of plain values only the methods that the limits know."""
        kind = next((kind for kind in (*type(obj).__mro__,) if kind in METHODS), None)
        known = kind is None or attr in METHODS[kind] or (kind is tuple and attr in getattr(obj, "_fields", ()))
        return known and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, macro or global, within the limits."""
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format in a function of its own
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        args = tuple(_listed(value) for value in args)
        if isinstance(owner, str) and name in ("format", "format_map"):
            # {:9} holds a width, and {:{}} takes it from an argument
            widths = [(*re.findall(r"\d+", inside), end) for inside, end in BRACE_WIDTH.findall(owner)]
            _check_format(owner, widths, [*args, *kwargs.values()])
        elif isinstance(owner, tuple(METHODS)):
            _check_growth(name, owner, [*args, *kwargs.values()])
        METER.spend(1)
        result = super().call(__context, __obj, *args, **kwargs)
        METER.spend(written_size(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, within the limits."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "%" and isinstance(left, str):
            _check_format(left, PERCENT_WIDTH.findall(left), right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MOST_BITS:
                raise LimitError(TOO_LARGE)
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > MOST_BITS:
                raise LimitError(TOO_LARGE)
        elif operator == "*" and not numbers:
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and max(times, 0) * written_size(value) > MOST_STEPS:
                raise LimitError(TOO_LARGE)
        elif operator == "+" and not numbers:
            METER.spend(written_size(left) + written_size(right))
        result = super().call_binop(context, operator, left, right)
        METER.spend(1 if numbers else written_size(result))
        return result


def regex_replace(text: object, pattern: object, replacement: object = "", count: object = 0) -> str:
    """lm-eval's filter: `re.sub`, by an engine that can be stopped."""
    if not (isinstance(pattern, str) and isinstance(replacement, str) and type(count) is int):
        kinds = f"{type(pattern).__name__}, {type(replacement).__name__}, {type(count).__name__}"
        raise TypeError(f"regex_replace takes a pattern and a replacement that are text, and a count; got {kinds}")
    check_writable(text)
    references = 1 + replacement.count("\\")  # each may stand for the whole of a match
    if len(str(text)) * references > MOST_UNCHECKED:
        raise LimitError(TOO_LARGE)
    try:
        return regex.sub(pattern, replacement, str(text), count=count, timeout=MOST_SECONDS)
    except TimeoutError:
        raise LimitError(f"regex_replace with {pattern[:100]!r} takes more time than {MOST_SECONDS:g} s") from None
    except (regex.error, IndexError, OverflowError) as error:
        raise ValueError(f"regex_replace with {pattern[:100]!r} and {replacement[:100]!r}: {error}") from None


class _Metered(NodeTransformer):
    # The tree of a template in which everything that repeats, compares, joins or writes passes the meter.

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return nodes.Const(node.data, lineno=node.lineno)  # plain text inside loops counts too: `write` sees it

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not allowed", node.lineno)
        self.generic_visit(node)
        node.iter = _through("metered_turns", cast(nodes.Expr, node.iter))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # a ~ b
        self.generic_visit(node)
        return _through("metered_text", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # == and `in` walk through lists
        self.generic_visit(node)
        node.expr = _through("metered_value", node.expr)
        for operand in node.ops:
            operand.expr = _through("metered_value", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # a key is hashed, and tuples hash what they hold
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Const | nodes.Slice):
            node.arg = _through("metered_value", node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _through("metered_value", node.key)
        return node


def _through(name: str, value: nodes.Expr) -> nodes.Expr:
    if isinstance(value, nodes.Const):
        return value
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # a filter or test whose arguments are looked at before, and whose result is counted after it
    own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context that Jinja puts first

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, *others = map(_listed, args[own:])
        given = [*others, *kwargs.values()]
        if name == "format":
            _check_format(str(value), PERCENT_WIDTH.findall(str(value)), given)
        elif name == "sum" and any(isinstance(start, list | tuple) for start in given):
            raise LimitError("sum adds numbers only")
        else:
            _check_growth(name, value, given)
        METER.spend(1)
        result = function(*args[:own], value, *others, **kwargs)
        METER.spend(written_size(result))
        return result

    return run


def _listed(value: Any) -> Any:
    # what map and select give, as a list whose size is known
    return list(islice(value, MOST_STEPS)) if isinstance(value, Iterator) else value


def _check_growth(name: str, value: object, given: list[Any]) -> None:
    # Every method and filter that we have makes at most its value once for each character of its arguments, plus a
    # width; indent takes its width once a line.
    widths = sum(abs(item) for item in given if isinstance(item, int)) if name in WITH_WIDTHS else 0
    texts = sum(written_size(item) for item in given if not isinstance(item, int))
    if name == "indent":
        texts += widths
    if widths > MOST_WIDTH or (1 + written_size(value)) * (1 + texts) > MOST_UNCHECKED:
        raise LimitError(TOO_LARGE)


def _check_format(text: str, fields: Sequence[Sequence[str]], values: Any) -> None:
    widths = [width for field in fields for width in field]  # of %5.1f: 5 and 1
    if "*" in widths or "{" in widths:
        raise LimitError("a format takes its width from an argument; write the number")
    width = sum(int(digits[:9]) for digits in widths if digits.isdigit())
    slots = text.count("%") + text.count("{")
    if width > MOST_WIDTH or len(text) + width + slots * written_size(values) > MOST_STEPS:
        raise LimitError(TOO_LARGE)
