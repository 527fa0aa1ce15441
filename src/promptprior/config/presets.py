"""Plans that come with the library, by name.

A file `NAME.yaml` of the folder is a plan, or the plans of a paper: `presets` has the settings of each by its name,
`common` those that all of them share, and other keys only hold what these refer to (`&name`, `*name`). The second plan
of paper.yaml is called paper/second. `about` says in a line what a plan is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from promptprior.config.mapping import merge_settings
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError, unknown_name

LIST = "list"  # no name of a preset: --preset list prints them


def read_presets(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings of every preset of a folder by its name, with `about`; those of a paper name their `published`."""
    presets: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        raw = load_yaml(path)
        if "presets" not in raw:
            presets[path.stem] = raw
        for name, own in raw.get("presets", {}).items():
            full = f"{path.stem}/{name}"
            presets[full] = {"published": full, "output": f"runs/{full}", **merge_settings(own, raw.get("common", {}))}
    return presets


def read_preset(folder: Path, name: str) -> dict[str, Any]:
    """The settings of one preset. Raises SpecError with near names."""
    presets = read_presets(folder)
    if name not in presets:
        raise SpecError(unknown_name("preset", name, presets) + " (--preset; --preset list prints all)")
    return {key: value for key, value in presets[name].items() if key != "about"}


def describe_presets(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each preset: its name, how many sources and targets it has, and what it is."""
    width = max(map(len, presets), default=0)
    lines = [f"{'preset':{width}} sources -> targets"]
    for name, plan in presets.items():
        sizes = f"{len(plan.get('sources', ())):>4} -> {len(plan.get('targets', ())):<3}"
        lines.append(f"{name:{width}} {sizes} {plan.get('about', '')}".rstrip())
    return "\n".join(lines)
