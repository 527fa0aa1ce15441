"""What mkdocs does here beside its own work (mkdocs.yml names this file).

Files of the repository outside docs/ become pages below repository/, notebooks are run, tables of settings are made
from the dataclasses, and links are turned so that the ones that work on GitHub work on the site.
"""

import os
import re
import shutil
import sys
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from promptprior.config.mapping import list_settings

sys.path.insert(0, str(Path(__file__).parent))
from run_notebooks import REPOSITORY, TINY, run_notebook, write_tiny_model

OUTSIDE = ("README.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md", "examples/*.md")
CODE = r"^```.*?^```|^    .*?$|`[^`]+`"  # a link in it is no link
LINK = re.compile(rf"{CODE}|(\[(?:[^\]`]|`[^`]+`)*\])\(([^)\s#]+)(#[^)\s]*)?\)", re.MULTILINE | re.DOTALL)
DRAWING = re.compile(r"!\[[^\]]*\]\(([^)\s]+\.svg)\)")  # put into the page, where its currentColor is the page's
SETTINGS = re.compile(r"<!-- settings: ([\w.]+) -->")  # where a table of a dataclass's settings goes
INDEX = """<!doctype html><html lang="en"><meta charset="utf-8"><title>promptprior</title>
<meta http-equiv="refresh" content="0; url={newest}/index.html"><h1>promptprior</h1><ul>{items}</ul></html>
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The version of the package is in the title and is the folder that this version of the site goes to."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.site_name += f" {project['version']}"
    config.site_dir = str(Path(config.site_dir) / project["version"])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/, and the notebooks with what they print."""
    for path in sorted(path for pattern in OUTSIDE for path in REPOSITORY.glob(pattern)):
        name = path.relative_to(REPOSITORY).as_posix()
        files.append(File.generated(config, f"repository/{name}", content=path.read_text(encoding="utf-8")))
    backbone, folder = config.extra["backbone"], Path(tempfile.mkdtemp(prefix="promptprior_docs_"))
    named = TINY if backbone == "tiny" else backbone
    if config.extra["run_notebooks"] and backbone == "tiny":
        backbone = str(write_tiny_model(folder))
    for path in sorted((REPOSITORY / "docs" / "notebooks").glob("*.py")):
        if config.extra["run_notebooks"]:
            text = run_notebook(path, backbone, named)
        else:
            text = f"# {path.stem}\n\nThis site was built without running the notebooks (RUN_NOTEBOOKS=false).\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    shutil.rmtree(folder)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn the links of GitHub into those of the site; what is not on the site is named instead of linked."""
    uri = page.file.src_uri
    here = PurePosixPath(uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}").parent

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if text is None or re.match(r"[a-z]+:", target):
            return link[0]
        meant = os.path.normpath(here / target)  # from the root of the repository
        there = meant.removeprefix("docs/") if meant.startswith("docs/") else f"repository/{meant}"
        if there.startswith("notebooks/"):
            there = str(PurePosixPath(there).with_suffix(".md"))
        if files.get_file_from_path(there) is None:
            assert (REPOSITORY / meant).exists(), f"{uri}: {target} leads nowhere"
            return text[1:-1] if meant in text else f"{text[1:-1]} (`{meant}`)"
        return f"{text}({os.path.relpath(there, PurePosixPath(uri).parent)}{anchor})"

    def table(place: re.Match[str]) -> str:
        module, _, name = place[1].rpartition(".")
        lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
        for s in list_settings(getattr(import_module(module), name)):
            if name == "Settings" or not s.key.startswith("settings."):
                cells = (f"`{s.key}`", s.kind, "" if s.default is None else f"`{s.default}`", s.help)
                lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        return "\n".join(lines)

    def drawing(place: re.Match[str]) -> str:
        path = REPOSITORY / os.path.normpath(here / place[1])
        return f"<figure>\n{path.read_text(encoding='utf-8')}</figure>"

    return LINK.sub(turned, SETTINGS.sub(table, DRAWING.sub(drawing, markdown)))


def on_post_build(config: MkDocsConfig) -> None:
    """A page beside the versions that leads to the newest and lists all."""
    folder = Path(config.site_dir).parent
    versions = [path.name for path in folder.iterdir() if (path / "index.html").is_file()]
    versions.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)], reverse=True)
    items = "".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in versions)
    (folder / "index.html").write_text(INDEX.format(newest=versions[0], items=items), encoding="utf-8")
