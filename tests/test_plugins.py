"""Objects that other packages declare as entry points."""

import subprocess
import sys
from pathlib import Path

import pytest

from promptprior import plugins
from promptprior.errors import SpecError
from tests.installed import install


def test_objects_are_loaded_by_name_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "plug-one", "[promptprior.things]\nanswer = plug_one:ANSWER\n", "ANSWER = 42\n")
    things = plugins.load_plugins("promptprior.things")
    assert list(things) == ["answer"]
    assert "plug_one" not in sys.modules
    assert things["answer"] == 42
    assert "question" not in things
    assert dict(plugins.load_plugins("promptprior.nothing")) == {}


@pytest.mark.parametrize("point", ["plug_two:MISSING", "plug_missing:ANSWER", "plug_broken:ANSWER"])
def test_what_cannot_be_loaded_names_package_and_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    install(monkeypatch, tmp_path, "plug-two", f"[promptprior.things]\nanswer = {point}\n")
    (tmp_path / "plug_broken.py").write_text("1 / 0\n")
    things = plugins.load_plugins("promptprior.things")
    with pytest.raises(SpecError, match=rf"'answer' \({point}, group promptprior.things, package plug-two\) cannot be"):
        things["answer"]


def test_a_name_of_promptprior_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "plug-three", "[promptprior.things]\naccuracy = plug_three:A\n")
    with pytest.raises(SpecError, match=r"'accuracy' .* of package plug-three has a name that promptprior itself"):
        plugins.load_plugins("promptprior.things", own_names=("accuracy",))


def test_two_packages_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "plug-four", "[promptprior.things]\nkappa = plug_four:A\n")
    install(monkeypatch, tmp_path, "plug-five", "[promptprior.things]\nkappa = plug_five:A\n")
    with pytest.raises(SpecError, match=r"'kappa' .* of package plug-four has a name that plug-five defines too"):
        plugins.load_plugins("promptprior.things")


def test_reading_entry_points_needs_no_torch() -> None:
    code = "import sys; from promptprior import plugins; plugins.load_plugins('promptprior.a')"
    code += "; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
