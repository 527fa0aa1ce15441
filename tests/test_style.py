"""Functions are short, counted as the style study counts other libraries: lines after the docstring."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/promptprior"


def bodies() -> Iterator[tuple[str, int]]:
    """Every function of the package and the lines of its body after the docstring."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                rest = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - rest[0].lineno + 1 if rest else 0
                yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", lines


def test_functions_are_short() -> None:
    lengths = dict(bodies())
    ordered = sorted(lengths.values())
    assert len(ordered) > 500
    assert {name: n for name, n in lengths.items() if n > 50} == {}
    assert ordered[int(0.9 * len(ordered))] <= 25
    assert statistics.median(ordered) <= 8
