"""What tests of the server share."""

from pathlib import Path

import pytest

from tests.serve.served import make_prompts


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of sixteen prompts."""
    return make_prompts(tmp_path_factory.mktemp("served"))
