"""Plans that come with the library, by name.

A file `NAME.yaml` of the folder is a plan, or the plans of a paper: `presets` has the settings of each by its name,
`common` those that all of them share, and other keys only hold what these refer to (`&name`, `*name`). The second plan
of paper.yaml is called paper/second. `about` says in a line what a plan is.
"""

from pathlib import Path
from typing import Any

from promptprior.config.mapping import merge_settings
from promptprior.config.yaml_file import load_yaml

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
