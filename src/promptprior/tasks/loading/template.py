"""Templates: how a row becomes text. A template is compiled once and can run no code but Jinja's own."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from jinja2 import TemplateSyntaxError, Undefined, meta, nodes

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.readers import Row
from promptprior.tasks.loading.sandbox import METER, LimitedEnvironment, check_writable, is_null, written_size

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
JINJA = LimitedEnvironment()
MOST_CHARACTERS = 2**18  # of a text, an answer or an id: some 60,000 tokens
MOST_SOURCE = 2**16  # characters of a template
PATIENCE = 5.0  # seconds of CPU after which rows must have taken less than SLOW each
SLOW = 0.005


@dataclass
class Pace:
    """What a template has cost so far."""

    seconds: float = 0.0
    rows: int = 0


@dataclass(frozen=True)
class Template:
    """A compiled template. `columns` are the columns it reads; `evaluate` gives a row's value.

    A plain column name, or a template that is one `{{ expression }}`, gives the value as it is (a number, a
    list); everything else gives text. This is how lm-eval's doc_to_choice and doc_to_target give lists.
    """

    source: str
    columns: tuple[str, ...]
    evaluate: Callable[[Row], object]
    pace: Pace = field(default_factory=Pace, compare=False)

    def value(self, row: Row, where: str, key: str) -> object:
        """The row's value. Raises DataError, naming place and column, for a missing or null column or a limit."""
        METER.reset()
        start = time.thread_time()
        try:
            value = self.evaluate(row)
            written_size(value)  # no list that holds itself many times
            if isinstance(value, Undefined):
                str(value)  # raises, and says which name is undefined
            self.pace.seconds, self.pace.rows = self.pace.seconds + time.thread_time() - start, self.pace.rows + 1
            if self.pace.seconds > max(PATIENCE, SLOW * self.pace.rows):
                each = f"{self.pace.seconds / self.pace.rows:.3f} s a row after {self.pace.rows:,} rows"
                reason = f"{self.source!r} takes too much time: {each}; expected at most {SLOW:g} s"
            elif not is_null(value):
                return value
            else:
                reason = f"{self.source!r} fails: it gives null"
        except RecursionError:
            reason = f"{self.source!r} fails: it calls itself without end, or is nested too deep"
        except Exception as error:  # Jinja hands on whatever the row's values raise
            reason = f"{self.source!r} fails: {str(error) or type(error).__name__}"
        missing = [name for name in self.columns if name not in row]
        if missing:  # a bare word was read as a column, but may be meant as text
            hint = f"; write {{{{ {self.source!r} }}}} if it is text" if IDENTIFIER.fullmatch(self.source) else ""
            listed = ", ".join(map(repr, missing))
            reason = f"missing column {listed} in {self.source!r} (columns: {', '.join(row)}){hint}"
        elif null := [name for name in self.columns if is_null(row[name])]:
            reason = f"column {', '.join(map(repr, null))} is {'null' if row[null[0]] is None else 'NaN'}"
        raise DataError(f"{where}: {key}: {reason}")

    def text(self, row: Row, where: str, key: str) -> str:
        """The row's value as text. Raises DataError for one that is no text or number, too."""
        return as_text(self.value(row, where, key), where, key)


def as_text(value: object, where: str, key: str) -> str:
    """The text of a template's value. Raises DataError for one that is no text or number, or is too long."""
    try:
        check_writable(value)
        text = str(value)
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} is half of a surrogate pair"
        raise DataError(f"{where}: {key}: {half}; write the character itself") from None
    except ValueError as error:
        raise DataError(f"{where}: {key}: {error}") from None
    if len(text) > MOST_CHARACTERS:
        raise DataError(f"{where}: {key} gives {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
    return text


@lru_cache(maxsize=4096)
def compile_template(source: str, where: str = "template") -> Template:
    """A column name, a Jinja template or plain text as a Template. Raises SpecError for bad Jinja."""
    if IDENTIFIER.fullmatch(source):
        return Template(source, (source,), lambda row: row[source])
    if len(source) > MOST_SOURCE:
        raise SpecError(f"{where}: a template has {len(source):,} characters; expected at most {MOST_SOURCE:,}")
    try:
        tree = JINJA.parse(source)
        names = meta.find_undeclared_variables(tree) - {"doc"}
        for item in tree.find_all(nodes.Getitem):  # a name with spaces is written doc['a name']
            if isinstance(item.node, nodes.Name) and item.node.name == "doc" and isinstance(item.arg, nodes.Const):
                names.add(str(item.arg.value))
        columns = tuple(sorted(names))
        outputs = tree.body[0].nodes if len(tree.body) == 1 and isinstance(tree.body[0], nodes.Output) else []
        if len(outputs) == 1 and not isinstance(outputs[0], nodes.TemplateData):
            # the template is one {{ expression }}: its value, not its text
            expression = JINJA.expression(outputs[0])
            return Template(source, columns, lambda row: expression({"doc": row, **row}))
        text = JINJA.template(tree)
        return Template(source, columns, lambda row: text.render({"doc": row, **row}))
    except TemplateSyntaxError as error:
        raise SpecError(f"{where}: bad Jinja in {source!r}: {error.message}") from None
    except (RecursionError, MemoryError, SyntaxError) as error:  # Python's compiler counts levels too
        raise SpecError(f"{where}: bad Jinja in {source!r}: nested too deep ({type(error).__name__})") from None
