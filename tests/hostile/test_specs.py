"""Hostile task specs and plans: templates that leave the sandbox, never end, grow or differ, includes, YAML."""

import os
from collections.abc import Mapping

import pytest
from ruamel.yaml import YAML

from tests.hostile.harness import GOOD_CSV, SHORT, TINY, Case, Content, ForkServer
from tests.hostile.test_data import DEEP, DIGITS, link_to, sparse

SHOW = ("tasks", "show", "spec.yaml")
GOOD_SPEC = "task: t\noutput_type: multiple_choice\ndoc_to_choice: [low, high]\ndoc_to_target: label\n"
TEXT = "doc_to_text: text\n"


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def spec(name: str, text: str, refused: str = "", files: Mapping[str, Content] | None = None) -> Case:
    """A spec file of this text, with a good train.csv beside it."""
    return Case(
        name, SHOW, {"spec.yaml": text, "train.csv": GOOD_CSV, **(files or {})}, refused, "" if refused else "licen"
    )


def template(name: str, source: str, refused: str = "") -> Case:
    """A spec whose doc_to_text is this template; errors name its key or the spec."""
    return spec(
        name, f"{GOOD_SPEC}doc_to_text: {quoted(source)}\n", refused and f"(doc_to_text|spec.yaml).*(?s:.*)({refused})"
    )


def included(name: str, include: str, refused: str = "", **files: Content) -> Case:
    return spec(name, f"include: {include}\n{GOOD_SPEC}", refused, {f"{n}.yaml": c for n, c in files.items()})


ESCAPES = [
    template("class", "{{ ''.__class__.__mro__ }}", "unsafe|attribute"),
    template("subclasses", "{{ ().__class__.__base__.__subclasses__() }}", "unsafe|attribute"),
    template("globals of a function", "{{ range.__globals__ }}", "unsafe|attribute"),
    template("globals of cycler", "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe|attribute"),
    template(
        "a callable to regex_replace",
        "{{ text | regex_replace('^.', '{0.__class__.__mro__}'.format) }}",
        "text|callable",
    ),
    template(
        "a macro to regex_replace", "{% macro f(m) %}x{% endmacro %}{{ text | regex_replace('.', f) }}", "text|Macro"
    ),
    template("attr format", "{{ ('{0.__class__}' | attr('format'))(text) }}", "attr"),
    template("attr class", "{{ text | attr('__class__') }}", "attr"),
    template("map attr", "{{ [text] | map('attr', '__class__') | list }}", "attr"),
    template("map attribute", "{{ [text] | map(attribute='__class__') | join }}", "unsafe|attribute|undefined"),
    template("format of an attribute", "{{ '{0.__class__.__mro__}'.format(text) }}", "unsafe|attribute"),
    template("format_map", "{{ '{a.__class__}'.format_map({'a': text}) }}", "unsafe|attribute"),
    template("the format method in map", "{{ ['{0.__class__}'] | map('format', text) | list }}", "fails"),
    template("item as attribute", "{{ text['__class__'] }}", "unsafe|attribute"),
    template("self", "{{ self.__dict__ }}", "unsafe|attribute"),
    template("context of a block", "{{ self._TemplateReference__context }}", "unsafe|attribute"),
    template("context of a function", "{{ doc.get.__self__ }}", "unsafe|attribute"),
    template("generator frame", "{{ (doc | map('upper')).gi_frame }}", "unsafe|attribute|fails"),
    template("joiner globals", "{{ joiner.__init__.__builtins__ }}", "unsafe|attribute"),
    template("include a file", "{% include '/etc/passwd' %}", "include|loader"),
    template("import a file", "{% import 'os' as os %}{{ os }}", "import|loader"),
    template("extend a file", "{% extends '/etc/passwd' %}", "extends|loader"),
    template("change the row", "{{ doc.update({'text': 'x'}) }}{{ text }}", "unsafe|update"),
    template("bytes of a number", "{{ (5).to_bytes(1000000000, 'big') }}", "to_bytes"),
    template("encode", "{{ text.encode('utf-16') }}", "encode|bytes"),
    spec(
        "a python tag",
        f"{GOOD_SPEC}doc_to_text: !!python/object/apply:os.system ['touch owned']\n",
        "spec.yaml, line 5",
    ),
    spec("a python name", f"{GOOD_SPEC}doc_to_text: !!python/name:os.system\n", "spec.yaml, line 5"),
    spec("lm-eval's !function", f"{GOOD_SPEC}doc_to_text: !function utils.run\n", "spec.yaml, line 5.*!function"),
    spec("a set", f"{GOOD_SPEC}doc_to_text: !!set {{a, b}}\n", "spec.yaml"),
    spec("binary", f"{GOOD_SPEC}doc_to_text: !!binary aGVsbG8=\n", "spec.yaml"),
]

ENDLESS = [
    template(
        "catastrophic regex",
        "{{ ('a' * 60 ~ 'bc') | regex_replace('(a|aa)+b$', '') }}{{ text }}",
        "regex_replace.*time",
    ),
    template(
        "catastrophic regex of a column", "{{ ('a' * 5000 ~ text) | regex_replace('(a|a)*b(a|aa)+$', 'x') }}", "time"
    ),
    template("the textbook's catastrophic regex", "{{ ('a' * 40 ~ '!') | regex_replace('(a+)+$', '') }}{{ text }}"),
    template(
        "nested quantifiers",
        "{{ ('x' * 100 ~ 'z!') | regex_replace('(x|xx|xxx)*(x|xx)*z[a-z]', '') }}{{ text }}",
        "time",
    ),
    template("a huge repeat", "{{ text | regex_replace('((a{1,30000}){1,30000}){1,30000}', '') }}", ""),
    template(
        "loops in a loop",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x",
        "steps|time",
    ),
    template(
        "loops over a list", "{% for i in [1] * 9999 %}{% for j in [1] * 9999 %}{% endfor %}{% endfor %}x", "steps|time"
    ),
    template(
        "search in a loop",
        "{% set l = range(50000) | list %}{% for i in l %}{{ '' if -1 in l }}{% endfor %}x",
        "steps|time",
    ),
    template(
        "select in a list",
        "{% set l = range(50000) | list %}{{ l | select('in', l) | list | length }}",
        "steps|time|large",
    ),
    template(
        "a list in itself compared",
        "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
        "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}"
        "{% endfor %}{{ n.a == n.b }}",
        "large|steps|time",
    ),
    template(
        "a tuple in itself as a key",
        "{% set n = namespace(a=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ {n.a: 1} }}",
        "large|steps|time",
    ),
    template(
        "a tuple in itself looked up",
        "{% set n = namespace(a=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ doc[n.a] }}",
        "large|steps|time",
    ),
    template(
        "a list in itself printed",
        "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
        "large|steps|time|list",
    ),
    template(
        "a list in itself as json",
        "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
        "{{ n.a | tojson }}",
        "large|steps|time",
    ),
    template("power of powers", "{{ 10 ** (10 ** 8) }}", r"\*\*|large"),
    template("power in a variable", "{% set n = 99999 %}{{ n ** n ** n }}", r"\*\*|large"),
    template("a power of a column", "{{ (text | length) ** 99999999 }}", r"\*\*|large"),
    template(
        "squares in a loop",
        "{% set n = namespace(a=10) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}{{ n.a }}",
        "large",
    ),
    template("additions of a power", "{{ (10 ** 300) * (10 ** 300) * (10 ** 300) * (10**300) * (10**300) }}", "large"),
    template("round to a power", "{{ 1.5 | round(100000000, 'ceil') }}", "large|fails"),
    template("batch", "{{ text | batch(100000000, 'x') | list }}", "large"),
    template("slice", "{{ text | slice(100000000) | list }}", "large"),
    template("macro without end", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurs|itself|steps"),
    template(
        "macro that branches",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}x",
        "steps|time",
    ),
    template("recursive loop", "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}x", "recurs"),
    template(
        "call block without end",
        "{% macro f() %}{{ caller() }}{{ f() }}{% endmacro %}{% call f() %}x{% endcall %}",
        "fails",
    ),
    template("sum of lists", "{{ ([[0] * 1000] * 1000) | sum(start=[]) | length }}", "sum|steps|time|large|fails"),
    template("lorem ipsum", "{{ lipsum(n=1000000) }}", "lipsum"),
    template(
        "sorting for ever", "{% for i in range(9999) %}{% set x = range(99999) | sort %}{% endfor %}x", "steps|time"
    ),
    template(
        "lengths for ever", "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}x", "steps|time"
    ),
]

GROWTH = [
    template("string times 1e9", "{{ 'a' * 10**9 }}", "large"),
    template("string times 1e11", "{{ 'a' * 10**11 }}", "large"),
    template("1e9 times string", "{{ 10**9 * 'a' }}", "large"),
    template("a column times 1e9", "{{ text * 1000000000 }}", "large"),
    template("a list times 1e9", "{{ ([text] * 1000000000) | length }}", "large"),
    template("center", "{{ text | center(10000000000) }}", "large"),
    template("center method", "{{ text.center(10000000000) }}", "large"),
    template("ljust method", "{{ text.ljust(1000000000) }}", "large"),
    template("zfill method", "{{ text.zfill(1000000000) }}", "large"),
    template("expandtabs method", "{{ '\t'.expandtabs(1000000000) }}", "large|expandtabs"),
    template("indent", "{{ 'a\nb' | indent(1000000000) }}", "large"),
    template("indent of many lines", "{{ ('a\n' * 50000) | indent(200000) }}", "large"),
    template("indent by text", "{{ ('a\n' * 5000) | indent('x' * 200000) }}", "large|steps"),
    template("format width", "{{ '%9999999999d' % 1 }}", "large|%"),
    template("format star", "{{ '%*d' % (999999999, 1) }}", "large|%|\\*"),
    template("format precision", "{{ '%.999999999f' % 1.0 }}", "large|%"),
    template("format filter", "{{ '%9999999999d' | format(1) }}", "large|%"),
    template("format filter of many", "{{ ('%s' * 50000) | format(*[text * 5000] * 50000) }}", "large|steps|fails"),
    template("format method width", "{{ '{:999999999}'.format(1) }}", "large|format"),
    template("format method inner width", "{{ '{:{}}'.format(1, 999999999) }}", "large|format"),
    template("replace by much", "{{ ('a' * 200000) | replace('a', 'b' * 200000) }}", "large|steps"),
    template("replace method", "{{ ('a' * 200000).replace('a', 'b' * 200000) }}", "large|steps"),
    template("replace nothing by much", "{{ ('a' * 200000) | replace('', 'b' * 200000) }}", "large|steps"),
    template("regex by much", "{{ ('a' * 200000) | regex_replace('', 'b' * 200000) }}", "large|steps"),
    template("regex by groups", "{{ ('a' * 200000) | regex_replace('(.*)', '\\1' * 50000) }}", "large|steps"),
    template("join by much", "{{ ([text] * 200000) | join('b' * 200000) }}", "large|steps"),
    template("join of much", "{{ (['a' * 200000] * 200000) | join }}", "large|steps"),
    template("join of much, selected", "{{ (['a' * 200000] * 200000) | select | join }}", "large|steps"),
    template("join method", "{{ ''.join(['a' * 200000] * 200000) }}", "large|steps"),
    template("wordwrap", "{{ ('a ' * 100000) | wordwrap(1, true, 'b' * 100000) }}", "large|steps|wordwrap"),
    template(
        "doubling by ~",
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a }}",
        "large|steps",
    ),
    template(
        "doubling by +",
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}",
        "large|steps",
    ),
    template(
        "doubling of lists by +",
        "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a|length }}",
        "large|steps|time",
    ),
    template(
        "doubling by a block",
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}"
        "{% set x %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = x %}"
        "{% endfor %}{{ n.a }}",
        "large|steps",
    ),
    template(
        "doubling by a macro",
        "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "d(" * 40 + "'ab'" + ")" * 40 + " }}",
        "large|steps",
    ),
    template("plain text in a loop", "{% for i in range(90000) %}" + "plain " * 1000 + "{% endfor %}", "large|steps"),
    template(
        "a plain million in loops",
        "{% for i in range(900) %}{% for j in range(900) %}" + "plain " * 50 + "{% endfor %}{% endfor %}",
        "large|steps",
    ),
    template("json of a column", "{{ ([text * 100] * 50000) | tojson }}", "large|steps"),
    template("a list literal", "{{ [[text] * 90000] * 90000 }}", "large|list|steps"),
    template("string of a list", "{{ ([[text] * 90000] * 90000) | string }}", "large|steps"),
    template("a text of 400,000 characters", "{{ text * 20000 }}", "characters|large"),
    template(
        "map of a million", "{{ range(100000) | map('string') | map('center', 200000) | join }}", "large|steps|time"
    ),
    template("xml attributes", "{{ {'a': text * 1000} | xmlattr }}", "xmlattr"),
    template("urlize", "{{ ('www.a.b ' * 9999) | urlize(nofollow=true) }}", "urlize"),
    spec("a description of 1 MB", f"{GOOD_SPEC}{TEXT}description: {'word ' * 200_000}\n", "spec.yaml"),
    spec("a description of 100 KB", f"{GOOD_SPEC}{TEXT}description: {'word ' * 20_000}\n", "description.*characters"),
    spec(
        "a target delimiter of 1 MB",
        f"{GOOD_SPEC}{TEXT}target_delimiter: {quoted('x' * 500_000)}\n",
        "target_delimiter|bytes",
    ),
    spec(
        "100,000 choices",
        "task: t\noutput_type: multiple_choice\ndoc_to_target: label\n"
        + TEXT
        + "doc_to_choice: ["
        + ", ".join(f"c{i}" for i in range(100_000))
        + "]\n",
        "spec.yaml",
    ),
]

RANDOM = [
    template("random filter", "{{ [text, 'b', 'c'] | random }}", "random"),
    template("random in a map", "{{ [[text, 'b']] | map('random') | join }}", "random"),
    template("lipsum", "{{ lipsum() }}", "lipsum"),
    template("the address of an object", "{{ text }}{{ doc.get }}", "fails.*method"),
    template("the address of a macro", "{% macro f() %}{% endmacro %}{{ f }}", "fails"),
    template("the address of a namespace", "{{ namespace(a=1) }}", "Namespace"),
    template("the address of a generator", "{{ [text] | map('upper') }}", "generator"),
    template("pprint", "{{ doc | pprint }}", "pprint"),
]

BROKEN = [
    template("an unknown filter", "{{ text | zebra }}", "zebra"),
    template("an unknown test", "{{ text is zebra }}", "zebra"),
    template("an open brace", "{{ text", "bad Jinja"),
    template("an open block", "{% if text %}", "bad Jinja"),
    template("a bad regex", "{{ text | regex_replace('(', '') }}", r"regex_replace.*\("),
    template("a bad replacement", "{{ text | regex_replace('a', '\\9') }}", "regex_replace.*group"),
    template("regex of a list", "{{ text | regex_replace(['a'], 'b') }}", "regex_replace|fails"),
    template("regex with a huge count", "{{ text | regex_replace('a', 'b', 10 ** 30) }}", "fails|large"),
    template("a number that overflows", "{{ 1e999 }}", "fails"),
    template("an overflowing product", "{{ 1e308 * 10 }} {{ text }}"),
    template("division by zero", "{{ 1 // 0 }}", "division|zero|by"),
    template("a missing column", "{{ zebra }}", "missing column 'zebra'"),
    template("a number plus text", "{{ text + 1 }}", "fails"),
    template("deep parentheses", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested|deep"),
    template("deeper parentheses", "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}", "nested|deep"),
    template(
        "deep parentheses, 100,000", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "nested|deep|characters"
    ),
    template("deep lists", "{{ " + "[" * 2000 + "1" + "]" * 2000 + " }}", "nested|deep"),
    template("lists 150 deep", "{{ " + "[" * 150 + "1" + "]" * 150 + " }}", "nested|deep|list|large"),
    template("deep ifs", "{% if 1 %}" * 500 + "x" + "{% endif %}" * 500, "nested|deep"),
    template("deep fors", "{% for i in [1] %}" * 30 + "x" + "{% endfor %}" * 30, "nested|deep"),
    template("ten fors", "{% for i in [1] %}" * 10 + "{{ text }}" + "{% endfor %}" * 10),
    template("deep negations", "{{ " + "not " * 5000 + "1 }}", "nested|deep"),
    template("a chain of additions", "{{ " + " + ".join(["1"] * 5000) + " }}", "nested|deep"),
    template("a chain of filters", "{{ text" + " | upper" * 3000 + " }}", "nested|deep"),
    template("a filter that fails at once", "{{ 'a' | batch }}", "batch"),
    template("a control character", "{{ text \x7f }}", "bad Jinja|not YAML|spec.yaml"),
    template("a bare word", "zebra", "missing column 'zebra'"),
    template("half of a surrogate pair", "{{ '\\ud800' }} {{ text }}", "surrogate"),
    template("text of nothing", "{{ '' }}", "empty text"),
    template("a list as text", "{{ [text, 'b'] }}", "list"),
    template("a dict as text", "{{ doc }}", "dict"),
    template("a list inside text", "Rows: {{ [text] }}", "list"),
    template("lm-eval's own filter", "{{ text | regex_replace('[0-9]+', '#') }}: {{ text | upper | trim }}"),
    template(
        "format as it should be",
        "{{ '%05.1f and %s' | format(1.5, text) }} {{ '%d%%' % 5 }} {{ '{:.2f}'.format(2.0) }}",
    ),
    template(
        "loops as they should be", "{% for w in text.split() %}{{ loop.index }}/{{ loop.length }} {{ w }} {% endfor %}"
    ),
    template("macros as they should be", "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(text) }}{{ f('b') }}"),
]

YAML_CASES = [
    spec(
        "an alias bomb",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{c}: &{c} [{','.join('*' + p for _ in range(9))}]\n"
            for p, c in zip("abcdefghi", "bcdefghij", strict=True)
        )
        + GOOD_SPEC
        + TEXT,
        "spec.yaml.*alias",
    ),
    spec(
        "an alias bomb below the limit",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join('*' + p for _ in range(9))}]\n" for p, c in zip("abcd", "bcde", strict=True))
        + "doc_to_text: *e\n"
        + GOOD_SPEC,
        "spec.yaml",
    ),
    spec("an alias of itself", f"{GOOD_SPEC}doc_to_text: &a [*a]\n", "spec.yaml"),
    spec(
        "a merge bomb",
        "a: &a {x: 1}\n"
        + "".join(
            f"{c}: &{c} {{<<: [{','.join('*' + p for _ in range(50))}]}}\n"
            for p, c in zip("abcdefghi", "bcdefghij", strict=True)
        )
        + GOOD_SPEC
        + TEXT,
        "spec.yaml",
    ),
    spec("an unknown alias", f"{GOOD_SPEC}doc_to_text: *nothing\n", "spec.yaml, line 5"),
    spec("a key twice", f"{GOOD_SPEC}{TEXT}{TEXT}", "spec.yaml, line 6: key 'doc_to_text' is given twice"),
    spec("an inner key twice", f"{GOOD_SPEC}{TEXT}metadata: {{family: a, family: b}}\n", "'family' is given twice"),
    spec("a date that is none", f"{GOOD_SPEC}{TEXT}doc_to_id: 2024-13-45\n"),  # one id for all: told apart
    spec("a date", f"{GOOD_SPEC}{TEXT}metadata: {{version: 2024-12-31, source: 2024-13-45}}\n"),
    spec("a timestamp tag", f"{GOOD_SPEC}doc_to_text: !!timestamp 2024-13-45\n", "spec.yaml"),
    spec("deep lists", f"{GOOD_SPEC}doc_to_text: {'[' * 5000}\n", "spec.yaml.*nested"),
    spec("deep lists, closed", f"{GOOD_SPEC}doc_to_text: {'[' * 5000}{']' * 5000}\n", "spec.yaml.*nested"),
    spec("100,000 deep lists", f"{GOOD_SPEC}doc_to_text: {'[' * 100_000}\n", "spec.yaml.*nested"),
    spec("deep maps", GOOD_SPEC + "".join(" " * i + f"k{i}:\n" for i in range(1200)), "spec.yaml"),
    spec("deep flow maps", f"{GOOD_SPEC}doc_to_text: {'{a: ' * 3000}\n", "spec.yaml.*nested"),
    spec("deep sequences", GOOD_SPEC + "doc_to_text:\n " + "- " * 2000 + "a\n", "spec.yaml"),
    spec(
        "an int of 5000 digits",
        f"{GOOD_SPEC}{TEXT}generation_kwargs: {{max_gen_toks: {DIGITS}}}\n",
        "spec.yaml.*digits",
    ),
    spec("an int of 5000 digits as text", f"{GOOD_SPEC}doc_to_text: {DIGITS}\n", "spec.yaml.*digits"),
    spec("a key of 5000 digits", f"{GOOD_SPEC}{TEXT}{DIGITS}: 1\n", "spec.yaml, line 6"),
    spec("a target of 400 digits", GOOD_SPEC.replace("label", "'{{ 10 ** 300 }}'") + TEXT, "label|outside|large"),
    spec("a target of 1e400", GOOD_SPEC.replace("label", "1" + "0" * 400) + TEXT, "spec.yaml|outside"),
    spec("a target that overflows", GOOD_SPEC.replace("label", quoted("{{ '1' ~ '0' * 400 }}")) + TEXT, "outside"),
    spec("a target below zero", GOOD_SPEC.replace("label", "-1") + TEXT, "outside"),
    spec("an empty file", "", "spec.yaml"),
    spec("a list on top", "- a\n- b\n", "spec.yaml: expected 'key: value'"),
    spec("a text on top", "hello\n", "spec.yaml: expected 'key: value'"),
    spec("two documents", f"{GOOD_SPEC}{TEXT}---\n{GOOD_SPEC}", "spec.yaml"),
    spec("tabs", f"{GOOD_SPEC}{TEXT}\tmetadata: 1\n", "spec.yaml, line"),
    spec("an unknown key", f"{GOOD_SPEC}{TEXT}doc_to_txt: a\n", "unknown key 'doc_to_txt'; did you mean"),
    spec("a key that is a list", f"{GOOD_SPEC}{TEXT}? [a, b]\n: 1\n", "spec.yaml"),
    spec("a key that is null", f"{GOOD_SPEC}{TEXT}~: 1\n", "spec.yaml"),
    spec("a text that is a number", f"{GOOD_SPEC}doc_to_text: 5\n", "split 'validation' is empty"),
    spec("a text that is true", f"{GOOD_SPEC}doc_to_text: true\n", "doc_to_text"),
    spec("a text that is a map", f"{GOOD_SPEC}doc_to_text: {{a: b}}\n", "doc_to_text"),
    spec("a task without a name", GOOD_SPEC.replace("task: t", "task: ''") + TEXT, "task.*empty"),
    spec("a task of spaces", GOOD_SPEC.replace("task: t", "task: '   '") + TEXT, "task.*empty"),
    spec("a surrogate in the task", GOOD_SPEC.replace("task: t", 'task: "a\\ud800"') + TEXT, "spec.yaml.*surrogate"),
    spec("a surrogate in the text", f'{GOOD_SPEC}doc_to_text: "a \\udfff {{{{ text }}}}"\n', "spec.yaml.*surrogate"),
    spec("a path in the task", GOOD_SPEC.replace("task: t", "task: ../../x") + TEXT, ""),
    Case("a NUL", SHOW, {"spec.yaml": GOOD_SPEC.encode() + b"doc_to_text: a\0b\n", "train.csv": GOOD_CSV}, "spec.yaml"),
    Case(
        "utf-16",
        SHOW,
        {"spec.yaml": (GOOD_SPEC + TEXT).encode("utf-16"), "train.csv": GOOD_CSV},
        "spec.yaml.*not UTF-8",
    ),
    Case("latin-1", SHOW, {"spec.yaml": (GOOD_SPEC + "doc_to_text: café\n").encode("latin-1")}, "spec.yaml.*not UTF-8"),
    Case(
        "a byte order mark", SHOW, {"spec.yaml": b"\xef\xbb\xbf" + (GOOD_SPEC + TEXT).encode(), "train.csv": GOOD_CSV}
    ),
    Case("a spec that is a pipe", SHOW, {"spec.yaml": os.mkfifo}, "spec.yaml: .*no regular file"),
    Case("a spec that is /dev/zero", SHOW, {"spec.yaml": link_to("/dev/zero")}, "spec.yaml: .*no regular file"),
    Case("a spec that is a folder", SHOW, {"spec.yaml/x": ""}, "spec.yaml"),
    Case("a spec of 100 GB", SHOW, {"spec.yaml": sparse(100 * 2**30)}, "spec.yaml: .*bytes.*at most"),
    Case("a spec of 5 MB", SHOW, {"spec.yaml": GOOD_SPEC + TEXT + "# x\n" * 1_250_000}, "spec.yaml: .*bytes.*at most"),
    Case("a spec that is not there", SHOW, {}, "spec.yaml"),
    Case(
        "json as yaml",
        SHOW,
        {"spec.yaml": '{"task": "t", "doc_to_text": "text", "doc_to_target": "label"}', "train.csv": GOOD_CSV},
    ),
    Case("deep json as yaml", SHOW, {"spec.yaml": DEEP}, "spec.yaml.*nested"),
]

VALUES = [
    spec(
        "max_gen_toks 1e12",
        f"task: t\n{TEXT}doc_to_target: label\ngeneration_kwargs: {{max_gen_toks: 1e12}}\n",
        "max_gen_toks.*at most",
    ),
    spec(
        "max_gen_toks 0",
        f"task: t\n{TEXT}doc_to_target: label\ngeneration_kwargs: {{max_gen_toks: 0}}\n",
        "max_gen_toks",
    ),
    spec(
        "max_gen_toks nan",
        f"task: t\n{TEXT}doc_to_target: label\ngeneration_kwargs: {{max_gen_toks: .nan}}\n",
        "max_gen_toks",
    ),
    spec(
        "max_gen_toks a list",
        f"task: t\n{TEXT}doc_to_target: label\ngeneration_kwargs: {{max_gen_toks: [5]}}\n",
        "max_gen_toks",
    ),
    spec("an unknown metric", f"{GOOD_SPEC}{TEXT}metric_list: [zebra]\n", "metric_list: unknown metric 'zebra'"),
    spec("a metric that is a map", f"{GOOD_SPEC}{TEXT}metric_list: [{{metric: {{a: 1}}}}]\n", "metric_list"),
    spec("a metric that is a number", f"{GOOD_SPEC}{TEXT}metric_list: [5]\n", "metric_list"),
    spec("a metric that is null", f"{GOOD_SPEC}{TEXT}metric_list: [~]\n", "metric_list"),
    spec("metrics that are text", f"{GOOD_SPEC}{TEXT}metric_list: accuracy\n", "metric_list"),
    spec("no metrics", f"{GOOD_SPEC}{TEXT}metric_list: []\n", "metric_list"),
    spec("a metric of 1 MB", f"{GOOD_SPEC}{TEXT}metric_list: [{'x' * 200_000}]\n", "metric_list"),
    spec("a metric with a dunder", f"{GOOD_SPEC}{TEXT}metric_list: [__class__]\n", "metric_list: unknown metric"),
    spec("one choice", GOOD_SPEC.replace("[low, high]", "[low]") + TEXT, "doc_to_choice"),
    spec("a choice twice", GOOD_SPEC.replace("[low, high]", "[low, high, low]") + TEXT, "doc_to_choice"),
    spec("an empty choice", GOOD_SPEC.replace("[low, high]", "[low, high, '']") + TEXT, "doc_to_choice"),
    spec("a choice that is a list", GOOD_SPEC.replace("[low, high]", "[low, [high]]") + TEXT, "doc_to_choice"),
    spec(
        "choices from a huge template",
        GOOD_SPEC.replace("[low, high]", quoted("{{ ['a'] * 10**9 }}")) + TEXT,
        "doc_to_choice",
    ),
    spec(
        "choices without end",
        GOOD_SPEC.replace("[low, high]", quoted("{{ range(99999) | list }}")) + TEXT,
        "doc_to_choice",
    ),
    spec("a filter that refuses all", f"{GOOD_SPEC}{TEXT}doc_filter: '{{{{ false }}}}'\n", "doc_filter"),
    spec(
        "a filter without end",
        GOOD_SPEC + TEXT + "doc_filter: " + quoted("{{ ('a' * 60 ~ 'bc') | regex_replace('(a|aa)+b$', '') }}") + "\n",
        "doc_filter.*time",
    ),
    spec("an id of 10 MB", GOOD_SPEC + TEXT + "doc_to_id: " + quoted("{{ text * 900000 }}") + "\n", "doc_to_id"),
    spec("a bare output type", GOOD_SPEC.replace("multiple_choice", "zebra") + TEXT, "output_type"),
    spec("metadata a list", f"{GOOD_SPEC}{TEXT}metadata: [a]\n", "metadata"),
    spec(
        "data files that climb",
        f"{GOOD_SPEC}{TEXT}dataset_path: csv\ndataset_kwargs: {{data_files: ../../../etc/passwd}}\n",
        "passwd",
    ),
    spec(
        "data files that are a pipe",
        f"{GOOD_SPEC}{TEXT}dataset_path: csv\ndataset_kwargs: {{data_files: p.csv}}\n",
        "p.csv: .*no regular file",
        {"p.csv": os.mkfifo},
    ),
    spec(
        "data files of a map",
        f"{GOOD_SPEC}{TEXT}dataset_path: csv\ndataset_kwargs: {{data_files: {{train: [a]}}}}\n",
        "spec.yaml|data_files",
    ),
    spec(
        "data files of odd splits",
        f"{GOOD_SPEC}{TEXT}dataset_path: csv\ndataset_kwargs: {{data_files: {{zebra: x.csv}}}}\n",
        "data_files",
    ),
    spec("trust_remote_code", f"{GOOD_SPEC}{TEXT}dataset_kwargs: {{trust_remote_code: true}}\n"),
    spec("a data set path that climbs", f"{GOOD_SPEC}{TEXT}dataset_path: ../../..\n", "spec.yaml"),
    spec("a data set path that is absolute", f"{GOOD_SPEC}{TEXT}dataset_path: /nowhere/at/all\n", "spec.yaml"),
]

CHAIN = {f"c{i}.yaml": f"include: c{i + 1}.yaml\n" for i in range(1500)}
SECRET = "root:x:0:0:root:/root:/bin/bash\n"
INCLUDES = [
    included("include beside", "base.yaml", base=TEXT),
    included("include below", "sub/base.yaml", **{"sub/base": TEXT}),
    included("include of an include", "sub/a.yaml", **{"sub/a": "include: b.yaml\n", "sub/b": TEXT}),
    included("include itself", "spec.yaml", "include.*(itself|circle)"),
    included("include in a circle", "a.yaml", "include.*(itself|circle)", a="include: b.yaml\n", b="include: a.yaml\n"),
    included("include by another spelling of itself", "./sub/../spec.yaml", "include", **{"sub/x": TEXT}),
    included("include that climbs", "../base.yaml", "include.*beside or below"),
    included("include that climbs far", "../../../../etc/passwd", "include.*beside or below"),
    included("include that climbs back", "sub/../../base.yaml", "include.*beside or below", **{"sub/x": TEXT}),
    included("include an absolute path", "/etc/passwd", "include.*beside or below"),
    included("include a home", "~/.bashrc", "bashrc"),
    included("include the folder", ".", "include|folder"),
    included("include a folder below", "sub", "sub", **{"sub/x": TEXT}),
    included("include nothing", "''", "include"),
    included("include a list", "[base.yaml]", "include.*(text|name of one file)", base=TEXT),
    included("include a map", "{a: b}", "include"),
    included("include a number", "5", "include|5"),
    included("include what is not there", "zebra.yaml", "zebra.yaml"),
    included("include a pipe", "p.yaml", "p.yaml: .*no regular file", p=os.mkfifo),
    included("include /dev/zero", "z.yaml", "z.yaml", z=link_to("/dev/zero")),
    included("include /dev/zero by name", "/dev/zero", "include.*beside or below"),
    included("include a link to a secret", "s.yaml", "include.*beside or below", s=link_to("/etc/passwd")),
    included("include a file that is no yaml", "s.yaml", "s.yaml", s=SECRET),
    included("include a file of another dialect", "s.yaml", "s.yaml", s="[section]\nkey = %(value)\n"),
    included("include a name of 5000 characters", "a" * 5000, "include|too long"),
    included("include a NUL", '"a\\0b.yaml"', "include|null"),
    spec("1500 includes", f"include: c0.yaml\n{GOOD_SPEC}", "include.*at most", {**CHAIN, "c1500.yaml": TEXT}),
    spec(
        "40 includes of a deep spec",
        f"include: c1460.yaml\n{GOOD_SPEC}",
        "include.*at most",
        {**CHAIN, "c1500.yaml": TEXT},
    ),
    included("a broken include", "base.yaml", "base.yaml, line 2", base="doc_to_text: a\n : b\n  - c\n"),
    included("an include with a key twice", "base.yaml", "base.yaml, line 2.*twice", base="a: 1\na: 2\n"),
    included("an include with an unknown key", "base.yaml", "unknown key 'zebra'", base=f"{TEXT}zebra: 1\n"),
]

ADAPTED = [
    Case(
        f"adapt: {case.name}",
        ("adapt", "--target", "spec.yaml", *TINY, *SHORT, "--output", "out"),
        case.files,
        case.refused,
    )
    for case in [*ENDLESS, *GROWTH, *RANDOM, *YAML_CASES, *VALUES, *INCLUDES]
    if case.name
    in (
        "catastrophic regex",
        "string times 1e11",
        "lipsum",
        "max_gen_toks 1e12",
        "include itself",
        "an alias bomb",
        "a surrogate in the task",
        "a description of 1 MB",
    )
]


def plan(name: str, content: Content, refused: str) -> Case:
    return Case(name, ("adapt", "--config", "plan.yaml"), {"plan.yaml": content}, refused)


PLANS = [
    plan("plan: an alias bomb", YAML_CASES[0].files["spec.yaml"], "plan.yaml.*alias"),
    plan("plan: a bomb as a value", YAML_CASES[1].files["spec.yaml"], "plan.yaml"),
    plan("plan: a key twice", "target: a\ntarget: b\n", "plan.yaml, line 2: key 'target' is given twice"),
    plan("plan: deep lists", f"target: {'[' * 5000}\n", "plan.yaml.*nested"),
    plan("plan: 5000 digits", f"shots: {DIGITS}\n", "plan.yaml.*digits"),
    plan("plan: a python tag", "target: !!python/name:os.system\n", "plan.yaml, line 1"),
    plan("plan: a pipe", os.mkfifo, "plan.yaml: .*no regular file"),
    plan("plan: /dev/zero", link_to("/dev/zero"), "plan.yaml: .*no regular file"),
    plan("plan: a folder", lambda path: path.mkdir(), "plan.yaml"),
    plan("plan: 5 MB", "# x\n" * 1_250_000, "plan.yaml: .*bytes.*at most"),
    plan("plan: a surrogate", 'target: "\\ud800"\n', "plan.yaml.*surrogate"),
    plan("plan: a NUL", b"target: a\0b\n", "plan.yaml"),
    plan("plan: not UTF-8", b"target: \xff\n", "plan.yaml.*not UTF-8"),
    Case("plan: a name of 5000 characters", ("adapt", "--config", "a" * 5000 + ".yaml"), {}, "too long"),
    Case("flag: a deep list", ("adapt", "--target", "x.csv", "--seed", "[" * 5000, "--output", "o"), {}, "seed"),
    Case("flag: 5000 digits", ("adapt", "--target", "x.csv", "--seed", DIGITS, "--output", "o"), {}, "seed"),
    Case(
        "flag: an alias bomb",
        ("adapt", "--target", "x.csv", "--seed", "{a: &a [1,1], b: [*a,*a]}", "--output", "o"),
        {},
        "seed",
    ),
]


@pytest.mark.parametrize(
    "case", [*ESCAPES, *ENDLESS, *GROWTH, *RANDOM, *BROKEN, *YAML_CASES, *VALUES, *INCLUDES, *ADAPTED, *PLANS], ids=str
)
def test_spec(case: Case, server: ForkServer):
    outcome = server.check(case)
    assert "root:x" not in outcome.err + outcome.out, "a message prints what stands in a file"


def test_quoting_keeps_templates_as_they_are():
    for case in [*ESCAPES[:25], *GROWTH[:40]]:
        text = case.files["spec.yaml"]
        assert isinstance(text, str)
        assert isinstance(YAML(typ="safe").load(text)["doc_to_text"], str)
