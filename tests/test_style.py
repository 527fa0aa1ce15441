"""The house can be read: few and full functions, short recipes, one name for one thing, the field's words."""

import ast
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.every_case
SOURCE = Path(__file__).parents[1] / "src/promptprior"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
LINES = {path: len(path.read_text().splitlines()) for path in FILES}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions() -> Iterator[tuple[Path, Function]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, Function))


def top_level() -> Iterator[tuple[Path, Function | ast.ClassDef]]:
    for path, tree in TREES.items():
        yield from ((path, node) for node in tree.body if isinstance(node, Function | ast.ClassDef))


def test_functions_are_few_and_full() -> None:
    """A function that is called once and explains nothing is a paragraph of its caller."""
    assert 1000 * sum(1 for _ in functions()) / sum(LINES.values()) <= 45  # 72 once; the goal, reached
    references: Counter[str] = Counter()
    for tree in TREES.values():
        references.update(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        references.update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    named = [node.name for _, node in top_level() if isinstance(node, Function)]
    assert sum(references[name] <= 1 for name in named) / len(named) <= 0.25  # 45 % once; the goal, reached


def test_a_function_takes_at_most_six_parameters() -> None:
    """More belong together: make them one value."""
    too_many = {}
    for path, node in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > 6:
            too_many[f"{name_of(path)}:{node.lineno} {node.name}"] = count
    assert too_many == {}


RECIPES = [p for p in FILES if p.relative_to(SOURCE).parts[0] == "methods" and p.parent.name != "shared"]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_fits_on_a_few_screens(path: Path) -> None:
    assert LINES[path] <= 120


def test_a_grep_finds_the_one_thing_of_a_name() -> None:
    files = defaultdict(list)
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            files[path.stem].append(name_of(path))
    assert {stem: paths for stem, paths in files.items() if len(paths) > 1} == {}
    names = defaultdict(list)
    for path, node in top_level():
        if not node.name.startswith("__"):
            names[node.name].append(name_of(path))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_folders_are_flat_and_none_holds_the_house() -> None:
    sizes = Counter(path.parent for path in FILES)
    assert {name_of(folder): size for folder, size in sizes.items() if size > 14 and folder != SOURCE} == {}
    total, rooms = sum(LINES.values()), Counter[str]()
    for path, lines in LINES.items():
        rooms[str(path.relative_to(SOURCE).parent)] += lines
    assert {room: lines for room, lines in rooms.items() if lines > 0.15 * total} == {}


def test_tensors_that_go_in_or_out_have_a_shape_or_a_unit() -> None:
    """In the annotation (jaxtyping), or in the docstring."""
    bare = []
    for path, node in functions():
        if node.name.startswith("_") or any("property" in ast.unparse(d) for d in node.decorator_list):
            continue
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        hints = [ast.unparse(a.annotation) for a in arguments if a.annotation] + (
            [ast.unparse(node.returns)] if node.returns else []
        )
        shapeless = any(re.search(r"(?<![\[\w.])Tensor\b(?!,)", hint) for hint in hints)
        text = ast.get_docstring(node) or ""
        if shapeless and not re.search(r"\[[A-Z*]|nats|scale|shape|scalar|any tensor", text):
            bare.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert bare == []


DIALECT = (
    "Lab", "Exam", "Marks", "Learned", "Begun", "Beginning", "Chapter", "Screened", "Likeness", "Offer", "Duel",
    "Bench",
    "Desk", "Seat", "hire", "bereaved", "Trunk", "Borrower", "lent", "twin", "fanned", "gathered", "followed",
    "way_back",
    "felt", "Before", "Kept", "kept_or_recomputed", "needs_company", "select_every", "looks", "two_speeds", "exhibits",
    "testimony", "drawings", "chapter", "foretold", "likeness", "sharers", "exam", "exams", "papers", "marks", "begun",
    "began", "opened", "told",
)  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_words_are_the_fields(path: Path) -> None:
    """No identifier of the private dialect that the library once had; strings may name what older files say."""
    with path.open() as file:
        names = {token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.NAME}
    assert names & {*DIALECT} == set()
