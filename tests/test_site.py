"""The documentation site: it builds without a warning, its notebooks run, its links lead somewhere, it is whole."""

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import promptprior as pp

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))

import write_schemas  # noqa: E402

DOCS, NOTEBOOKS = REPOSITORY / "docs", sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))
STUB = (REPOSITORY / "src" / "promptprior" / "__init__.pyi").read_text(encoding="utf-8")
PUBLIC = re.findall(r"^from (\.[\w.]+) import (\w+) as \w+$", STUB, re.MULTILINE)


class Ids(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loads = set[str](), set[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in ("script", "img", "iframe"):
            self.loads.add(given.get("src", ""))
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon"):
            self.loads.add(given["href"])


def test_the_site_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, for the site is built once: notebooks take seconds, and all run in this process."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(REPOSITORY)
    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # raises where there was a warning: a link, an anchor, a page outside the navigation
    [version] = [path for path in (tmp_path / "site").iterdir() if path.is_dir()]
    assert f'href="{version.name}/index.html"' in (tmp_path / "site" / "index.html").read_text()

    for notebook in NOTEBOOKS:  # executed, and each shows something that was printed
        text = (version / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8")
        assert "Executed when this site was built" in text, notebook
        assert 'class="language-text highlight"' in text, notebook

    # from the folder: nothing comes from a network, the search is a script, dark mode can be chosen
    pages = {page: Ids(page) for page in version.rglob("*.html") if page.name != "404.html"}
    for page, found in pages.items():
        assert not [url for url in found.loads if re.match(r"(https?:)?//", url)], page
        for link in found.links:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            there = (page.parent / target).resolve() if target else page
            assert there.is_file(), f"{page.name}: {link}"
            assert not anchor or there not in pages or anchor in pages[there].ids, f"{page.name}: {link}"
    assert (version / "search" / "search_index.js").is_file()
    assert 'data-md-color-scheme="slate"' in (version / "index.html").read_text(encoding="utf-8")

    api = pages[version / "api.html"].ids
    for module, name in PUBLIC:
        assert any(known.endswith(f".{name}") for known in api), f"docs/api.md: no {name} of {module}"


def test_all_notebooks_are_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 5
    assert sorted(re.findall(r"notebooks/(\w+)\.md", text)) == [path.stem for path in NOTEBOOKS]


def test_the_number_of_the_first_screen_is_that_of_the_table() -> None:
    start = re.sub(r"\s*\n>?\s*", " ", (DOCS / "index.md").read_text(encoding="utf-8"))
    tables = re.split(r"^k = (\d+):", (DOCS / "best_answer.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for k, table in zip(tables[::2], tables[1::2], strict=True):
        [row] = [line for line in table.splitlines() if line.startswith("| linear_probe | 5 |")]
        found = re.search(r"\+(0\.\d+) \(\+(0\.\d+) to \+(0\.\d+)\) \|$", row)
        assert found, row
        ahead, low, high = found.groups()
        assert re.search(rf"\b{k} .{{0,300}}{ahead}.{{0,120}}{low} to {high}", start), f"k = {k}: {found[0]}"


# Public names -----------------------------------------------------------------------------------------------------


def documented(name: str) -> Iterator[tuple[str, object]]:
    """A public name, and the public functions of a class."""
    value = getattr(pp, name)
    yield name, value
    if inspect.isclass(value):
        for key, part in inspect.getmembers(value, inspect.isroutine):
            if not key.startswith("_") and (part.__module__ or "").startswith("promptprior"):
                yield f"{name}.{key}", part


@pytest.mark.parametrize("name", [name for _, name in PUBLIC])
def test_a_public_name_says_what_it_is_and_what_it_raises(name: str) -> None:
    for what, value in documented(name):
        if what == "METHODS":  # a value: its docstring stands below it
            assert '"""Every method by its name' in inspect.getsource(importlib.import_module("promptprior.methods"))
            continue
        text = inspect.getdoc(value) or ""
        assert len(text.split()) >= 4, f"{what} has no docstring"
        if inspect.isfunction(value):
            body = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(value))))
            raises = "." not in what or any(isinstance(node, ast.Raise) and node.exc for node in body)
            assert not raises or re.search(r"\braises?\b", text, re.IGNORECASE), f"{what} does not say what it raises"


# Schemas ----------------------------------------------------------------------------------------------------------

PLANS = [
    *sorted((REPOSITORY / "experiments").glob("*.yaml")),
    *sorted((REPOSITORY / "tests" / "fixtures").rglob("results/plan.yaml")),
]
RESULTS = [
    *sorted((REPOSITORY / "tests" / "fixtures").rglob("results.jsonl")),
    *sorted((DOCS / "studies" / "results").glob("*.jsonl")),
]


def validator(name: str) -> "jsonschema.Draft202012Validator":  # type: ignore[name-defined]
    import jsonschema

    schema = json.loads((DOCS / "schemas" / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schemas_are_what_the_code_makes(tmp_path: Path) -> None:
    write_schemas.write(tmp_path)
    for made in sorted(tmp_path.iterdir()):
        kept = DOCS / "schemas" / made.name
        assert kept.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "python tools/write_schemas.py"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_schema_accepts_every_plan(path: Path) -> None:
    from promptprior.config.yaml_file import load_yaml

    validator("plan.schema.json").validate(json.loads(json.dumps(load_yaml(path))))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_schema_accepts_rows(path: Path) -> None:
    """The first and last line of each file: all of them take a minute."""
    lines, check = path.read_text(encoding="utf-8").splitlines(), validator("results.schema.json")
    for line in (lines[0], lines[-1]):
        check.validate(json.loads(line))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("plan.schema.json", {"methods": ["zero_shot"], "shotz": [4]}),
        ("plan.schema.json", {"shots": [0]}),
        ("plan.schema.json", {"settings": {"target": {"steps": "many"}}}),
        ("results.schema.json", {"cell": "0" * 16}),
    ],
)
def test_the_schema_refuses_what_reading_refuses(name: str, wrong: dict[str, object]) -> None:
    from promptprior.config.mapping import from_mapping
    from promptprior.errors import SpecError

    assert list(validator(name).iter_errors(wrong))
    with pytest.raises(SpecError):
        from_mapping(write_schemas.SCHEMAS[name][0], wrong, "here")
