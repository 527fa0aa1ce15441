"""README, docs and examples do what they say, on a tiny model; what they name exists."""

import contextlib
import importlib.util
import inspect
import io
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from peft import PeftModel

import promptprior.adapt
import promptprior.estimator
import promptprior.fit
from promptprior import files, untrusted
from promptprior.artifacts import import_prompt
from promptprior.backbone import frozen
from promptprior.cli import main
from promptprior.config import yaml_file
from promptprior.config.training import Settings, Training
from promptprior.methods import METHODS
from promptprior.tasks.loading import sandbox, spec, template
from tests import test_cost_estimate
from tests.backbone.tiny import saved_model
from tests.hostile import test_numbers
from tests.kill import test_kill
from tests.methods import test_wrong_methods

pytestmark = pytest.mark.every_case
REPOSITORY = Path(__file__).parents[1]
PAGES = ("*.md", "docs/*.md", "docs/how_to/*.md", "docs/concepts/*.md", "examples/*.md")
DOCUMENTS = [path for pages in PAGES for path in sorted(REPOSITORY.glob(pages))]
STUDIES = [path for path in sorted((REPOSITORY / "docs" / "studies").glob("*.md")) if "_tables" not in path.stem]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model")


def python_of_the_readme() -> list[str]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_estimator_on_the_first_screen_of_the_readme_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    block, _ = python_of_the_readme()
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    assert block in "\n".join((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()[:30])
    monkeypatch.chdir(tmp_path)
    adapt = promptprior.estimator.adapt

    def quick(*given: Any) -> Any:  # the same with two steps
        *first, settings, control = given
        return adapt(*first, replace(settings, target=Training(steps=2)), control)

    monkeypatch.setattr(promptprior.estimator, "adapt", quick)
    tiny = block.replace('pp.PromptClassifier("smollm2")', f'pp.PromptClassifier("{model}", dtype="float32")')
    assert tiny != block
    exec(tiny, {})
    assert "['bad' 'good'] [[" in capsys.readouterr().out
    (tmp_path / "new.csv").write_text("text\nI liked it\n")
    [command] = re.findall(r"# promptprior (predict .*)", block)  # as its comment says
    assert main(command.split()) == 0
    assert capsys.readouterr().out.startswith("text,answer,probability bad,probability good\nI liked it,")


def test_the_python_of_the_readme_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, block = python_of_the_readme()
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    short = Settings(source=Training(steps=2), target=Training(steps=2))
    for module in ("promptprior.fit", "promptprior.adapt"):
        monkeypatch.setattr(sys.modules[module], "Settings", lambda: short)
    names: dict[str, object] = {}
    tiny = block.replace('pp.load("smollm2", dtype="auto")', f'pp.load("{model}", dtype="float32")')
    assert tiny != block
    exec(tiny, names)
    base = tf.AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, "runs/prompt")  # as its comment says
    assert adapted.peft_config["default"].num_virtual_tokens == 20


def test_the_example_of_an_own_csv_runs(model: Path, tmp_path: Path):
    path = REPOSITORY / "examples" / "own_csv.py"
    spec = importlib.util.spec_from_file_location("own_csv", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracy = example.main(tmp_path / "tickets.csv", str(model), steps=2)
    assert accuracy.keys() == {"zero_shot", "prompt_tuning", "multitask"}
    assert (tmp_path / "tickets.csv").read_text().startswith("text,label\n")


def anchors(path: Path) -> set[str]:
    """Where links into a page can lead: its headings as GitHub and mkdocs name them, and what has an id."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    names = [re.sub(r"[^\w -]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head)).strip().lower() for head in headings]
    return {*(name.replace(" ", "-") for name in names), *re.findall(r'id="([^"]+)"', text)}


LINKED = [*DOCUMENTS, *sorted(REPOSITORY.glob("docs/studies/*.md")), *sorted(REPOSITORY.glob("docs/notebooks/*.py"))]
LINKED += sorted(REPOSITORY.glob(".github/**/*.md"))


def test_links_lead_somewhere():
    """To files and folders of the repository, and to headings in pages; nothing is asked of a network."""
    for path in LINKED:
        for link in re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if not re.match(r"https://[\w.-]+", link):
                name, _, anchor = link.partition("#")
                target = path.parent / name if name else path
                assert target.exists(), f"{name_of(path)}: {link}: no such file"
                assert not anchor or anchor in anchors(target), f"{name_of(path)}: {link}: no such heading"


def test_the_pages_that_code_names_exist():
    roots = ("src", "tests", "benchmarks", "tools", "examples", "experiments")
    files = [p for root in roots for p in (REPOSITORY / root).rglob("*") if p.suffix in (".py", ".yaml", ".sh")]
    for path in [*files, *(REPOSITORY / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml"))]:
        for page in re.findall(r"(?<![\w/])(?:docs|examples)/[\w/]+\.md\b", path.read_text(encoding="utf-8")):
            assert (REPOSITORY / page).exists(), f"{name_of(path)}: no {page}"


def test_the_methods_that_documents_name_exist():
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    table = text.split("\n\n")[1]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named
    assert named <= METHODS.keys()
    families = {name.split("_")[0] for name in METHODS}
    assert families == {name.split("_")[0] for name in named}, "a method is missing in docs/methods.md"


ROOTS = [REPOSITORY / root for root in ("", "src", "src/promptprior", "src/promptprior/backbone", "tests")]


def spelled_out(name: str) -> Iterator[str]:
    """The paths that a name with one pair of braces stands for."""
    before, *rest = re.split(r"[{}]", name)
    yield from (before + part + rest[1] for part in rest[0].split(",")) if rest else [name]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_files_that_documents_name_exist(path: Path):
    for span in re.findall(r"`([\w.{},]{2,}/[\w./{},]*\.(?:py|pyi|yaml))`", path.read_text(encoding="utf-8")):
        for name in spelled_out(span):
            assert any((root / name).exists() for root in ROOTS), f"{path.name}: no file {name}"


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every command of the library in the code of a document: its verb and the flags it is given."""
    joined = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^```bash\n(.*?)^```", joined, re.DOTALL | re.MULTILINE)
    indented, spans = re.findall(r"^    (.*)", joined, re.MULTILINE), re.findall(r"`([^`\n]+)`", joined)
    for line in [*"\n".join(blocks).splitlines(), *indented, *spans]:
        program, verb, *words = [*re.split(r"\s+#\s", line)[0].split(), "", ""]
        if program == "promptprior" and re.fullmatch(r"[a-z]+", verb):
            yield verb, [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


@cache
def help_flags(verb: str) -> frozenset[str]:
    """The flags that the help of a verb lists; none for a word that is no verb."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([verb, "--help"])
    return frozenset(re.findall(r"--[a-z][\w.-]*", out.getvalue()))


def is_flag(flag: str, known: frozenset[str]) -> bool:
    """Whether it is one of some flags, the end of one, or the option of a method."""
    if flag.startswith("--options."):
        method, key = ([*flag.split(".")[1:], ""])[:2]
        recipes = [METHODS[method]] if method in METHODS else METHODS.values() if not key else []
        option = (key or method).replace("-", "_")
        return method == "NAME" or any(option in {f.name for f in fields(recipe)} for recipe in recipes)
    return flag in known or any(name.endswith(f".{flag[2:]}") for name in known)


@pytest.mark.parametrize("path", [*DOCUMENTS, *STUDIES], ids=name_of)
def test_the_commands_of_documents_have_only_flags_that_exist(path: Path):
    for verb, flags in commands(path.read_text(encoding="utf-8")):
        known = help_flags(verb)
        assert known, f"{path.name}: no verb {verb}"
        for flag in flags:
            assert is_flag(flag, known | EVERYWHERE), f"{path.name}: {verb} has no flag {flag}"


OTHER_TOOLS = {
    "performance.md",
    "second_backbone.md",
    "CHANGELOG.md",
}  # flags of benchmarks and torchrun, earlier flags
VERBS = (
    "fit", "adapt", "evaluate", "predict", "compare", "report", "similar", "tasks", "import", "export", "inspect",
    "share", "fetch", "leaderboard", "serve",
)  # fmt: skip
EVERYWHERE = frozenset({"--help", "--print-completion"})


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name not in OTHER_TOOLS], ids=name_of)
def test_the_flags_that_documents_name_exist(path: Path):
    known = EVERYWHERE.union(*map(help_flags, VERBS))
    for span in re.findall(r"`(--[^`]+)`", path.read_text(encoding="utf-8")):
        for flag in re.findall(r"--[a-z][\w.-]*", span):
            assert is_flag(flag, known), f"{path.name}: no flag {flag}"


ENTRY_POINTS = {f"promptprior.{group}" for group in ("metrics", "report_tables", "verbs")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_python_names_of_documents_exist(path: Path):
    text = re.sub(r"\bpp\.", "promptprior.", path.read_text(encoding="utf-8"))
    for name in set(re.findall(r"`(promptprior\.[a-zA-Z_.]+)(?=[`(\[])", text)) - ENTRY_POINTS - {"promptprior.json"}:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            with contextlib.suppress(ModuleNotFoundError):
                value = importlib.import_module(".".join(parts[:end]))
                break
        for attribute in parts[end:]:
            assert hasattr(value, attribute), f"{path.name}: no {name}"
            value = getattr(value, attribute)


@pytest.mark.parametrize("path", [*DOCUMENTS, *STUDIES], ids=name_of)
def test_lines_fit_into_120_columns(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


LIMITS = (  # a row of the table in SECURITY.md, and the numbers that its bounds are
    ("a backbone folder", (frozen.MOST_OF_CONFIG, 2**31)),
    ("a task spec or plan", (yaml_file.MOST_BYTES, yaml_file.MOST_NODES, spec.MOST_INCLUDES, spec.MOST_CHOICES)),
    (
        "a template in a spec",
        (
            template.MOST_SOURCE,
            sandbox.MOST_SECONDS,
            sandbox.MOST_STEPS,
            template.MOST_CHARACTERS,
            sandbox.MOST_BITS,
            sandbox.MOST_WIDTH,
        ),
    ),
    ("a data file", (untrusted.MOST_BYTES, untrusted.MOST_DIGITS, untrusted.MOST_NESTED)),
    ("a prior or prompt", (files.MOST_BYTES, files.MOST_OF_HEADER)),
    ("`.npy`, `.pt`", (import_prompt.MOST_BYTES, import_prompt.MOST_NESTED)),
)


def table_rows(path: Path) -> list[list[str]]:
    """The cells of every row of a document's tables."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]


@pytest.mark.parametrize(("name", "limits"), LIMITS, ids=[name for name, _ in LIMITS])
def test_the_limits_of_the_security_page_are_those_of_the_code(name: str, limits: tuple[float, ...]):
    [bounds] = [row[-1] for row in table_rows(REPOSITORY / "SECURITY.md") if row[0].startswith(name)]
    assert [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\d|\d", bounds)] == list(limits)


def cases(test: object) -> int:
    """How many cases a test has."""
    return math.prod(len(list(mark.args[1])) for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize")


def hostile_command_lines() -> dict[str, int]:
    """How many command lines each file of tests/hostile gives to its server."""
    counts = {}
    for path in sorted((REPOSITORY / "tests" / "hostile").glob("test_*.py")):
        module = importlib.import_module(f"tests.hostile.{path.stem}")
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        counts[path.name] = sum(cases(test) for test in tests if "server.check(" in inspect.getsource(test))
    del counts["test_harness.py"]
    return counts


def test_the_counts_of_the_reliability_page_are_those_of_the_tests():
    page = REPOSITORY / "docs" / "reliability.md"
    rows, text = table_rows(page), page.read_text(encoding="utf-8")
    kinds = ("kill", "time", "full", "SIGINT", "SIGTERM")
    for verb, pieces in test_kill.PIECES.items():
        tried = dict(piece.split(":") for piece in pieces)
        [row] = [row for row in rows if row[0].startswith(f"`{verb}`" if verb != "guard" else "`adapt --guard`")]
        assert row[1:] == [tried.get(kind, "") for kind in kinds]
    disturbed = sum(int(piece.split(":")[1]) for pieces in test_kill.PIECES.values() for piece in pieces)
    hostile = hostile_command_lines()
    cheats = cases(test_wrong_methods.test_the_suite_catches_a_method_that_reads_answers_it_must_not)
    for name, count in hostile.items():
        assert [row[2] for row in rows if row[0] == f"`tests/hostile/{name}`"] == [str(count)], f"{name}: {count}"
    cheats = cases(test_wrong_methods.test_the_suite_catches_a_method_that_reads_answers_it_must_not)
    for count in (
        f"{disturbed} disturbed runs",
        f"{cases(test_kill.test_a_signal_during_start_up_ends_it_in_one_line)} cases",
        f"{sum(hostile.values())} command lines",
        f"{len(test_numbers.FLAGS) + len(test_numbers.OPTIONS)} flags and options",
        f"{len(test_cost_estimate.CASES)} methods and options",
        f"{cheats} methods made to cheat",
    ):
        assert count in text, count
    scale = (REPOSITORY / "docs" / "running_at_scale.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"at {disturbed} moments" in scale
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    torture = sum(int(n) for n in re.findall(r"\w+:\w+:(\d+)", makefile))
    assert f"`make torture` at {torture} more" in scale


def test_every_promise_names_a_test_that_exists():
    rows = [row for row in table_rows(REPOSITORY / "docs" / "reliability.md") if "tests/" in row[1]]
    assert len(rows) >= 10
    for row in rows:
        for name in re.findall(r"`(tests/[^`]+)`", row[1]):
            assert (REPOSITORY / name).exists(), name
