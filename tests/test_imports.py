"""Imports go one way, between folders and inside them; only backbone/ knows transformers; importing is light."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/promptprior"
LAYERS = (
    "notation", "errors", "untrusted", "cost", "plugins", "processes", "interruptions", "files", "config", "tasks",
    "backbone", "parameterisations", "heads", "objectives", "rules", "artifacts", "preflight", "train", "watch",
    "evaluate", "methods", "cost_estimate", "fit", "adaptation", "adapt", "guard", "report", "compare", "estimator",
    "serve", "cli",
)  # fmt: skip
"""From the ground up: a file imports only from its own layer and from those before it."""
FILES = sorted(SOURCE.rglob("*.py"))
OUTSIDE = ("__init__", "__main__")  # they hand on names, or start the command line


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside functions; "promptprior.x.y" for the package's own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if module_file(name) is not None}
            found |= submodules | ({module} if submodules != names else set())
    return found


def module_file(module: str) -> Path | None:
    """The file of one of the package's modules."""
    if module.split(".")[0] != "promptprior":
        return None
    base = SOURCE.joinpath(*module.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def arrows() -> Iterator[tuple[Path, Path]]:
    """Which file of the package imports which, by their paths in it."""
    for path in FILES:
        for module in imported(path):
            target = module_file(module)
            if target is not None and target != path:
                yield path.relative_to(SOURCE), target.relative_to(SOURCE)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes that are left when every node without arrows to others has been taken away, again and again."""
    left = {node: set(targets) for node, targets in graph.items()}
    while gone := {node for node, targets in left.items() if not targets & left.keys()}:
        left = {node: targets for node, targets in left.items() if node not in gone}
    return sorted(left)


def test_every_layer_has_its_place() -> None:
    assert {layer(path) for path in FILES} - {*OUTSIDE} == {*LAYERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_the_layers_above_it(path: Path) -> None:
    here = layer(path)
    if here in OUTSIDE:
        return
    for module in imported(path):
        if module.startswith("promptprior."):
            there = module.split(".")[1]
            assert LAYERS.index(there) <= LAYERS.index(here), f"{path.relative_to(SOURCE)} imports {module}"


def test_no_file_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {str(path.relative_to(SOURCE)): set() for path in FILES}
    for origin, target in arrows():
        graph[str(origin)].add(str(target))
    assert cycle(graph) == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: str(p.relative_to(SOURCE)))
def test_inside_a_folder_imports_go_one_way(folder: Path) -> None:
    """Its files, and its folders each as a whole; the folder's own __init__ stands below them all."""
    place = folder.relative_to(SOURCE)
    graph: dict[str, set[str]] = {}
    for origin, target in arrows():
        if place in origin.parents and place in target.parents:
            here, there = (p.relative_to(place).parts[0] for p in (origin, target))
            if here != there and not (str(place) == "." and {here, there} & {f"{name}.py" for name in OUTSIDE}):
                graph.setdefault(here, set()).add(there)
                graph.setdefault(there, set())
    assert cycle(graph) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_backbone_imports_transformers_and_the_report_no_model(path: Path) -> None:
    packages = {module.split(".")[0] for module in imported(path)}
    assert "transformers" not in packages or layer(path) == "backbone"
    assert "peft" not in packages or path.name == "weight_overrides.py"
    assert not packages & {"torch", "transformers"} or layer(path) not in ("report", "config", "cost", "plugins")


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout.strip()


def test_reading_results_needs_no_torch() -> None:
    code = "import sys, promptprior.files, promptprior.report.results, promptprior.cli.verbs.report_verb; "
    code += "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE.parent)}, check=True)


def test_public_names_are_functions_even_after_their_files_are_imported() -> None:
    files = "promptprior.adapt, promptprior.fit, promptprior.evaluate, promptprior.compare.run"
    code = f"import promptprior as pp, {files}; "
    code += "assert all(map(callable, (pp.adapt, pp.fit, pp.evaluate, pp.compare))); "
    code += "from promptprior import compare; assert callable(compare); assert {'fit', 'Plan'} <= {*dir(pp)}; "
    code += "assert not [name for name in pp.__all__ if not hasattr(pp, name)]"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SOURCE.parent)}, check=True)


def test_importing_the_library_is_light() -> None:
    heavy = ("torch", "datasets", "plotly", "sklearn", "peft", "scipy.stats", "rouge_score", "sacrebleu", "pandas")
    assert (
        run_python(f"import sys, promptprior, promptprior.cli; print([m for m in {heavy} if m in sys.modules])") == "[]"
    )


def test_a_report_needs_no_model() -> None:
    files = [path.relative_to(SOURCE.parent) for path in FILES if layer(path) == "report" and path.stem != "__init__"]
    modules = [".".join(path.with_suffix("").parts) for path in files]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert run_python(code) == "[]"
