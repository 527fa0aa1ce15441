"""Imports go one way, only backbone/ knows transformers, and importing the library is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/promptprior"
LAYERS = (
    "notation", "errors", "plugins", "cost", "processes", "files", "config", "tasks", "backbone", "parameterisations",
    "objectives", "rules", "artifacts", "train", "watch", "evaluate", "methods", "fit", "adapt", "guard", "predictive",
    "report", "compare", "cli",
)  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))


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
            whole_package = node.module == "promptprior"
            found |= {f"promptprior.{a.name}" for a in node.names} if whole_package else {node.module or ""}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_the_layers_above_it(path: Path) -> None:
    here = layer(path)
    if here in ("__init__", "__main__"):
        return
    assert here in LAYERS, f"{path.name}: say where {here!r} stands in LAYERS"
    for module in imported(path):
        if module.split(".")[0] == "promptprior":
            there = module.split(".")[1]
            if there in LAYERS:
                below = LAYERS.index(there) > LAYERS.index(here)
                assert not below, f"{path.relative_to(SOURCE)} ({here}) imports {module}, which stands below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_backbone_imports_transformers(path: Path) -> None:
    packages = {module.split(".")[0] for module in imported(path)}
    assert "transformers" not in packages or layer(path) == "backbone"
    assert "peft" not in packages or path.name == "weight_overrides.py"


def test_importing_the_library_is_light() -> None:
    heavy = ("datasets", "plotly", "sklearn", "peft", "scipy.stats", "rouge_score", "sacrebleu", "pandas")
    code = f"import sys, promptprior, promptprior.cli; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
