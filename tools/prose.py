"""Check the prose: spelling, grammar, long sentences, repeated words, fillers, Latin, retired words, acronyms.

    python tools/prose.py [FILE ...]     without files: every document, notebook and docstring

Harper does it (the package harper-py), without a network. Words of the field that its dictionary lacks are in
tools/vocabulary.txt; an abbreviation that it does not know has to be in the table of docs/notation.md. What is found
goes to stdout, one line each, and the exit code is then 1.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harper import Dialect, Linter

REPOSITORY = Path(__file__).parents[1]
VOCABULARY = REPOSITORY / "tools" / "vocabulary.txt"

# Rules of Harper that are on by default and off here. All others are on.
OFF = {
    # Our style differs.
    "SentenceCapitalization": "table cells are no sentences, and promptprior and llama.cpp begin with a small letter",
    "UseTitleCase": "headings are written like sentences",
    "OxfordComma": "lists of words have no comma before the last one, lists of clauses may: neither rule fits",
    "NumericRangeEnDash": "ranges in tables are ASCII",
    "UseEllipsisCharacter": "ASCII: it stands for what code leaves out",
    "EllipsisLength": "'P_1 .. P_S' is a range",
    "ExpandMemoryShorthands": "MB and GB are units",
    "ExpandTimeShorthands": "s and h are units",
    "ExpandMinimum": "min is a unit, and a function",
    "ExpandParameter": "`params` is the name of the thing in code",
    "ExpandArgument": "ARG is a mean that reports have",
    "ExpandConfiguration": "`config` is a file of a model",
    "ExpandControl": "Ctrl-C is a key",
    "ExpandStandardInputAndOutput": "stdin, stdout and stderr are what readers of a command line call them",
    "CompoundNouns": "we write data set, file name and plain text in two words",
    # Wrong here, by a sample of what each found.
    "SplitWords": "wants 'prompt prior'; what it finds elsewhere is a spelling mistake too",
    "OrthographicConsistency": "wants 'spot' for SPoT and 'attempt' for ATTEMPT",
    "MassNouns": "wants no plural of parameterisation, training and covariance",
    "DisjointPrefixes": "wants 'overruns' for 'an interval over runs'",
    "Overall": "wants 'overall' for 'over all'",
    "MergeWords": "takes the s of seconds for a piece of a word",
    "CapitalizePersonalPronouns": "i is an index",
    "MissingPreposition": "wants one in 'sizes are whole numbers'",
    "MissingTo": "takes meta-learned for a verb",
    "ItsContraction": "wants 'it's mean'",
    "LetsConfusion": "wants 'let's' in 'lets answers choose'",
    "ThatThan": "wants 'than' in 'the adapter that PEFT makes'",
    "TheirToTheyre": "wants 'they're' in 'whether their mean'",
}

# Rules of our own: a pattern in prose (code and links are out), and what to do.
HOUSE = {
    "Filler": (
        r"(?i)\b(very|simply|just|obviously|basically|actually|really|quite|clearly|easily|of course)\b",
        "leave it out, or say how much",
    ),
    "Latin": (r"(?i)(?<!\w)(e\.g\.|i\.e\.|etc\.|cf\.|viz\.|vs\.|ergo\b|ibid\.)", "say it in English"),
    "RetiredWord": (
        r"(?<![\w-])([Ll]ab|[Ee]xams?|(?<!byte order )[Mm]arks?|Learned|Begun|Beginnings?|[Ee]xhibits?|testimony|"
        r"[Ss]creened|foretold|foretells?|[Ll]ikeness|[Dd]uels?|[Bb]ench|bereaved|[Tt]runks?|Borrower|lent|lends|"
        r"[Tt]wins?|fanned|way_back|[Ss]elect[_-]every|two[_ ]speeds|sharers|--looks|--together|looks at dev)\b",
        "the library called something so once: use the word of the field (docs/notation.md)",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Where, by which rule, the words, and what is wrong with them."""

    path: Path
    line: int
    rule: str
    words: str
    message: str

    def __str__(self) -> str:
        place = self.path.relative_to(REPOSITORY) if self.path.is_relative_to(REPOSITORY) else self.path
        return f"{place}:{self.line}: {self.rule}: {' '.join(self.words.split())!r}: {self.message}"


def documents() -> list[Path]:
    """Every page that a person wrote, the notebooks and the library; tables of studies are written by a program."""
    patterns = ("*.md", "docs/**/*.md", "examples/*.md", "docs/notebooks/*.py", "src/**/*.py")
    found = (path for pattern in patterns for path in REPOSITORY.glob(pattern))
    return sorted(p for p in found if not re.search(r"_tables\.md$|/studies/results/", p.as_posix()))


def vocabulary() -> list[str]:
    """The words of tools/vocabulary.txt, in its order; lines with a # are headings."""
    lines = VOCABULARY.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def abbreviations() -> list[str]:
    """What the table of docs/notation.md spells out."""
    text = (REPOSITORY / "docs" / "notation.md").read_text(encoding="utf-8").partition("## Abbreviations")[2]
    return [short for row in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE) for short in row.split(", ")][1:]


def prose(path: Path) -> str:
    """What people read in a file, each word on its line: a page, docstrings of a module, cells of a notebook."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return source
    lines = [""] * len(source.splitlines())
    if path.parent.name == "notebooks":
        for cell in re.finditer(r"^# %% \[markdown\]\n((?:#.*\n)+)", source, re.MULTILINE):
            first = source.count("\n", 0, cell.start(1))
            for number, line in enumerate(cell[1].splitlines(), first):
                lines[number] = line.removeprefix("#").removeprefix(" ")
        return "\n".join(lines)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (text := ast.get_docstring(node)) is not None:
            doctest = re.compile(r"^>>> .*(\n.+)*", re.MULTILINE)
            text = doctest.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
            first = node.body[0].lineno - 1
            lines[first : first + text.count("\n") + 1] = text.splitlines()
    # a docstring ends in a full stop, so that two that touch are two sentences
    return "\n".join(lines)


NOT_PROSE = re.compile(  # left as it stands: Harper knows code, links and comments of Markdown
    r"^```.*?^```|^    .*?$|`[^`]*`|\]\([^)]*\)|<!--.*?-->|https?://\S+", re.DOTALL | re.MULTILINE
)
CODE = re.compile(  # what is code without backticks: identifiers, flags, files, shapes
    r"(?<![\w`])(?:[\w.]*\w_\w[\w.]*|--\w[\w.-]*|[\w/{},-]*\.(?:md|pyi?|ya?ml|jsonl?|js|css|toml|csv|gguf|npy|pt|bin|so|txt|html)\b"
    r"|\.[a-z_]\w+|\w+=\"\w*\"|(?:torch|llama|plotly|promptprior)\.\w[\w.]*\w|\"[a-z]\w*\W?\")|\[[^\[\]\n\"'`]*\](?![(\[])"
)


def masked(text: str) -> str:
    """The same length, with code in backticks that had none, and decimals that begin with a point begun with a zero."""
    parts, end = [], 0
    for found in [*NOT_PROSE.finditer(text), None]:
        between = text[end : found.start() if found else len(text)]
        between = CODE.sub(lambda code: f"`{'x' * (len(code[0]) - 2)}`" if len(code[0]) > 2 else code[0], between)
        parts += [re.sub(r"(?<![\w.)`])\.(?=\d)", "0", between), found[0] if found else ""]
        end = found.end() if found else end
    return "".join(parts)


def linter() -> Linter:
    """Harper with our rules and words."""
    made = Linter(Dialect.BRITISH)
    made.import_words([*vocabulary(), *abbreviations()])
    made.set_lint_config({**made.get_default_lint_config(), **dict.fromkeys(OFF, False)})
    return made


def known_words() -> set[str]:
    """Ours, which Harper confuses where only their case differs, and names of classes: Python's and ours."""
    sources = (path.read_text(encoding="utf-8") for path in REPOSITORY.glob("src/**/*.py"))
    classes = (name for source in sources for name in re.findall(r"^class (\w+)", source, re.MULTILINE))
    return {*vocabulary(), *abbreviations(), *dir(builtins), *classes}


def check(path: Path, harper: Linter, names: set[str]) -> Iterator[Finding]:
    """Everything that is wrong with the prose of one file."""
    text = masked(prose(path))
    for rule, lints in harper.organized_lints(text, dedup=False).items():
        for lint in lints:
            words = lint.problem_text
            if rule == "SpellCheck":
                stem = re.sub(r"(?:'s|[.'])$", "", words)
                known = len(stem) < 2 or stem in names or re.search(r"\d", stem)
                if known or (stem != words and not harper.lint(stem, dedup=False)):
                    continue
            yield Finding(path, 1 + text.count("\n", 0, lint.span.start), rule, words, lint.message)
    plain = NOT_PROSE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)
    for rule, (pattern, message) in HOUSE.items():
        if rule == "RetiredWord" and path.name == "CHANGELOG.md":
            continue  # it alone may say what something was called before
        for found in re.finditer(pattern, plain):
            yield Finding(path, 1 + text.count("\n", 0, found.start()), rule, found[0], message)


def main(given: list[str]) -> int:
    """Check these files, or all; 1 where anything was found."""
    harper, names = linter(), known_words()
    paths = [Path(name).resolve() for name in given] or documents()
    found = [finding for path in paths for finding in check(path, harper, names)]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
