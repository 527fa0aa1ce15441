"""What every test runs under: checked tensor shapes, and one thread for each of several test processes."""

import os
from collections import Counter
from collections.abc import Iterator
from zlib import crc32

import pytest

from tests import shapes

WITH_TENSORS = (
    "tasks.sampling", "backbone", "parameterisations", "objectives", "artifacts", "rules", "evaluate", "train",
    "methods", "adapt",
)  # fmt: skip
# Before anything imports them: the shapes in these modules' signatures are then checked.
shapes.check_shapes_of([f"promptprior.{name}" for name in WITH_TENSORS])

import torch  # noqa: E402

MANY_CASES = 12

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_runtest_setup() -> None:
    shapes.tests_begun += 1


# Skips are counted, so that an oracle that stops running is noticed ------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-skips", type=int, default=None, metavar="N", help="fail when more than N tests are skipped (.ci/run)"
    )
    parser.addoption("--thorough", action="store_true", help="all tests: every case, all kills, slow ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --thorough, leave out slow tests, and fifteen in sixteen cases of a test with many: the same in each run.

    All of them take two cores sixteen minutes, and continuous integration has fifteen with installation.
    """
    if config.getoption("--thorough"):
        return
    cases = Counter(item.nodeid.partition("[")[0] for item in items)

    def is_left_out(item: pytest.Item) -> bool:
        has_many = cases[item.nodeid.partition("[")[0]] > MANY_CASES
        is_sampled = has_many and item.get_closest_marker("every_case") is None
        return item.get_closest_marker("slow") is not None or (is_sampled and crc32(item.nodeid.encode()) % 16 > 0)

    config.hook.pytest_deselected(items=[item for item in items if is_left_out(item)])
    items[:] = [item for item in items if not is_left_out(item)]


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
