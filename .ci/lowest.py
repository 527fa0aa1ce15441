"""The lower bounds of pyproject.toml as exact requirements, for `make test-lowest`: python .ci/lowest.py EXTRA ...

Every `>=` becomes `==`. torch is left out: the Makefile installs it first and by itself, in the version that is tested,
because on Linux the older builds of PyPI come with CUDA, gigabytes of it.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(project: dict, extras: list[str]) -> list[str]:
    """Requirements of a [project] table and of some of its extras; raises ValueError for one without a lower bound."""
    asked = [Requirement(text) for text in project["dependencies"]]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if requirement.name == project["name"]:  # promptprior[hub,…]: an extra that holds others
                waiting += sorted(requirement.extras - seen)
                seen |= requirement.extras
            else:
                asked.append(requirement)
    pins = {}
    for requirement in asked:
        bounds = [s.version for s in requirement.specifier if s.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement}: expected one lower bound, {requirement.name}>=VERSION")
        marker = f"; {requirement.marker}" if requirement.marker else ""
        name = requirement.name + (f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else "")
        pins[requirement.name.lower()] = f"{name}=={bounds[0]}{marker}"
    return [pin for name, pin in sorted(pins.items()) if name != "torch"]


if __name__ == "__main__":
    print("\n".join(lowest(tomllib.loads(PROJECT.read_text())["project"], sys.argv[1:])))
