"""What a public name says of itself: shapes of tensors, units of numbers, errors; a method says where it is from.

Public are the names of `promptprior` and of the modules that docs/extending.md lists. Files are parsed, not imported.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "src"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def definitions(module: str) -> Iterator[tuple[Path, Definition]]:
    """The public functions and classes of a module, where they are defined; of a package those that it exports."""
    path = file_of(module)
    if path.name != "__init__.py":
        yield from ((path, node) for node in tree(path).body if isinstance(node, Definition) and node.name[0] != "_")
        return
    stub = path.with_suffix(".pyi")
    source = stub if stub.exists() else path
    exported = set(re.findall(r'^    "(\w+)",$', source.read_text(encoding="utf-8"), re.MULTILINE))
    for node in tree(source).body:
        if isinstance(node, ast.ImportFrom):
            origin = f"{module}.{node.module}" if node.level else node.module or ""
            names = {alias.name for alias in node.names if stub.exists() or alias.name in exported}
            for where, found in definitions(origin) if names and origin.startswith("promptprior") else ():
                if found.name in names:
                    yield where, found
        elif isinstance(node, Definition) and node.name in exported:
            yield path, node


def public_modules() -> list[str]:
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8").partition("## Public modules")[2]
    return sorted(set(re.findall(r"`(promptprior(?:\.\w+)*)`", text)))


PUBLIC = sorted(
    {found for module in public_modules() for found in definitions(module)},
    key=lambda found: (found[0], found[1].lineno),
)


def parts() -> Iterator[tuple[str, Path, Definition, str]]:
    """Each public definition and the public methods of classes: its name, file and node, and all that is said of it."""
    for path, node in PUBLIC:
        said = ast.get_docstring(node) or ""
        yield node.name, path, node, said
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, Function) and method.name[0] != "_":
                    yield f"{node.name}.{method.name}", path, method, f"{ast.get_docstring(method) or ''}\n{said}"


def test_there_are_public_names() -> None:
    assert len(public_modules()) >= 20
    assert {"fit", "compare", "PromptClassifier", "Backbone", "Batch", "Direct", "Metric"} <= {
        n.name for _, n in PUBLIC
    }


def test_it_says_what_it_is() -> None:
    """In three words or more; the rest of a docstring is for what the name does not say."""
    assert [name for name, _, node, _ in parts() if len((ast.get_docstring(node) or "").split()) < 3] == []


LIBRARY_ERRORS = {node.name for node in tree(ROOT / "promptprior/errors.py").body if isinstance(node, ast.ClassDef)}


def raised(node: Definition) -> set[str]:
    """The library's errors that a body raises by itself."""
    found = (n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc)
    names = (n.func if isinstance(n, ast.Call) else n for n in found)
    return {name.id for name in names if isinstance(name, ast.Name)} & LIBRARY_ERRORS


def test_it_says_what_it_raises() -> None:
    """What its own body raises, and the functions and methods of its file that it calls."""
    silent = []
    for name, path, node, _ in parts():
        if not isinstance(node, Function) or any(ast.unparse(d) == "property" for d in node.decorator_list):
            continue
        owner, _, _ = name.partition(".")
        here = {f.name: f for f in tree(path).body if isinstance(f, Function)}
        for other in (n for n in tree(path).body if isinstance(n, ast.ClassDef) and n.name == owner):
            here |= {f"self.{f.name}": f for f in other.body if isinstance(f, Function)}
        calls = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        errors = raised(node).union(*(raised(here[call]) for call in calls & here.keys()))
        said = ast.get_docstring(node) or ""
        if errors and not (re.search(r"\b[Rr]aises?\b", said) and all(error in said for error in errors)):
            silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}: {sorted(errors)}")
    assert silent == []


def test_a_method_says_where_it_comes_from() -> None:
    """The docstring of a recipe's module names a paper with its year, or says that the method is ours."""
    folders = (ROOT / "promptprior/methods" / name for name in ("from_sources", "target_only"))
    said = {p.stem: ast.get_docstring(tree(p)) or "" for folder in folders for p in folder.glob("[a-z]*.py")}
    assert len(said) >= 15
    assert [name for name, text in said.items() if not re.search(r"\b(19|20)\d\d\b|\bOurs\b", text)] == []


def annotated(node: Definition) -> Iterator[tuple[str, str]]:
    """Parameters and result of a function, public fields of a class; with their annotations."""
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        yield from ((n.target.id, ast.unparse(n.annotation)) for n in fields if n.target.id[0] != "_")
        return
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    yield from ((a.arg, ast.unparse(a.annotation)) for a in arguments if a.annotation)
    if node.returns:
        yield "return", ast.unparse(node.returns)


def test_its_tensors_have_shapes() -> None:
    """In the annotation, or in what the docstring says."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}: {argument}"
        for name, path, node, said in parts()
        for argument, hint in annotated(node)
        if re.search(r"(?<![\[\w.])(?:Tensor|ndarray)\b(?!,)", hint)
        and not re.search(r"\[[A-Z*]|\bscalar\b|any tensor|\bshape", said)
    ]
    assert bare == []


UNITS = {  # numbers by what their name ends in, and the words of which their docstring has one
    r"(^|_)(learning_)?rates?$": r"scale|absolute|share|--rate-unit",
    r"(^|_)(loss|nll)(es)?$": r"nats",
    r"(^|_)(noise|jitter|radius|bandwidth)$": r"scale",
    r"(^|_)(wait|timeout|elapsed|duration|time)$": r"second",
    r"(^|_)(memory|size_limit)$": r"bytes|GB|MB",
    r"(^|_)(length|width|budget|limit|size)$": r"\b(tokens?|rows?|examples?|entries|characters|texts?|vectors|[LD])\b",
}


def test_its_numbers_have_units() -> None:
    """In the docstring, or beside a field. Of a name that is its unit (`seconds`, `tokens`) none is asked."""
    bare = []
    for name, path, node, said in parts():
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.AnnAssign)]
        beside = {ast.unparse(n.target): " ".join(lines[n.lineno - 1 : n.end_lineno]) for n in fields}
        for argument, hint in annotated(node):
            unit = next((unit for pattern, unit in UNITS.items() if re.search(pattern, argument)), "")
            is_number = re.search(r"\b(float|int|Tensor|Float)\b", hint)
            if is_number and not re.search(unit, f"{said} {beside.get(argument, '')}"):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}: {argument}")
    assert bare == []
