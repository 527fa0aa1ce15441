"""What every test runs under: checked tensor shapes, and one thread for each of several test processes."""

import os
from collections.abc import Iterator

import pytest

from tests import shapes

WITH_TENSORS = (
    "tasks.sampling", "backbone", "parameterisations", "objectives", "artifacts", "rules", "evaluate", "train",
    "methods", "adapt",
)  # fmt: skip
# Before anything imports them: the shapes in these modules' signatures are then checked.
shapes.check_shapes_of([f"promptprior.{name}" for name in WITH_TENSORS])

import torch  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    shapes.tests_begun += 1


# Skips are counted, so that an oracle that stops running is noticed ------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-skips", type=int, default=None, metavar="N", help="fail when more than N tests are skipped (.ci/run)"
    )
    parser.addoption("--thorough", action="store_true", help="kill commands at all moments, not a fifth (minutes)")


@pytest.fixture(scope="session")
def is_thorough(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--thorough"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail a run that skipped more than --max-skips; `-rs` has printed each skip with its reason."""
    yield
    most, reporter = session.config.option.max_skips, session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = 0 if reporter is None else len(reporter.stats.get("skipped", []))  # workers of xdist have no reporter
    if most is not None and skipped > most:
        reporter.write_line(
            f"{skipped} tests were skipped, {most} are known (--max-skips, in .ci/run): install what they need, or "
            "raise the number there and say why they cannot run",
            red=True,
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
