"""What every test runs under: checked tensor shapes, and one thread for each of several test processes."""

import os

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  the hook finds it by name

WITH_TENSORS = (
    "tasks.sampling", "backbone", "parameterisations", "objectives", "artifacts", "rules", "evaluate", "train",
    "methods", "adapt",
)  # fmt: skip
# Before anything imports them: the shapes in these modules' signatures are then checked at every call.
install_import_hook([f"promptprior.{name}" for name in WITH_TENSORS], "tests.shapes.checked")

import torch  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
