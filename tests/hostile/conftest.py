"""The process that runs hostile command lines, one for all tests."""

from collections.abc import Iterator

import pytest

from tests.hostile.harness import ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    shared = tmp_path_factory.mktemp("shared")
    server = ForkServer(shared)
    yield server
    server.close()
