"""Run notebooks in jupytext's percent format and write them as Markdown with what their cells print.

    python tools/run_notebooks.py docs/notebooks/own_csv.py         # on SmolLM2; BACKBONE names another

All run in this process, one after the other, because a kernel for each would import torch five times. A cell shows what
it prints and the value of its last line, as Jupyter does.
"""

import ast
import io
import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import jupytext

REPOSITORY = Path(__file__).parents[1]
TINY = "a tiny model with random weights, so its scores say nothing about any method"


def write_tiny_model(folder: Path) -> Path:
    """The model that tests and the site run notebooks on: a Llama of two layers that reads characters."""
    import torch
    import transformers as tf

    sys.path.insert(0, str(REPOSITORY))
    from tests.backbone.tiny import config, tokenizer

    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(config("llama")).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def run_notebook(path: Path, backbone: str, named: str) -> str:
    """A notebook as Markdown. Whatever a cell raises is raised.

    Cells find the backbone in the variable BACKBONE of the environment; `named` is what the page calls it.
    """
    started, names, parts = time.process_time(), {"__name__": "__main__"}, []
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch.object(tempfile, "tempdir", scratch),  # what cells leave in temporary folders goes with it
        patch.dict(os.environ, BACKBONE=backbone),
    ):
        for number, cell in enumerate(jupytext.read(path, fmt="py:percent").cells, start=1):
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            where, printed = f"{path.name}, cell {number}", io.StringIO()
            tree = ast.parse(cell.source, where)
            last = tree.body.pop().value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            with redirect_stdout(printed):
                exec(compile(tree, where, "exec"), names)
                value = None if last is None else eval(compile(ast.Expression(last), where, "eval"), names)
                if value is not None:
                    print(value)
            parts.append(f"```python\n{cell.source}\n```")
            if output := printed.getvalue().rstrip():
                parts.append(f"```text\n{output}\n```")
    title, *rest = parts[0].split("\n\n", 1)
    seconds = time.process_time() - started
    note = (
        f'!!! note ""\n    Executed when this site was built, on {named}, in {seconds:.1f} CPU seconds. '
        f"The notebook is `docs/notebooks/{path.name}`; "
        f"`jupytext --to ipynb docs/notebooks/{path.name}` makes a Jupyter notebook of it."
    )
    return "\n\n".join([title, note, *rest, *parts[1:]]) + "\n"


if __name__ == "__main__":
    model = os.environ.get("BACKBONE", "smollm2")
    print("\n".join(run_notebook(Path(name), model, model) for name in sys.argv[1:]))
