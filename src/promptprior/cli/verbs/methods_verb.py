"""promptprior methods: list the methods, or show what one does and its options."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Literal

from promptprior.cli.output import format_table
from promptprior.cli.verb import Verb
from promptprior.config.mapping import Setting, list_settings
from promptprior.config.training import setting
from promptprior.errors import SpecError, unknown_name

CITATION = re.compile(r"[A-Z][\w-]+(?:,? (?:[A-Z][\w-]+|et al\.))* (?:19|20)\d\d")  # "Finn et al. 2017"


@dataclass(frozen=True)
class MethodDescription:
    """What help says about a method. `about` is the docstring of its module, `bounds` are those of its options."""

    line: str
    paper: str
    about: str
    needs_sources: bool
    uses_shots: bool
    options: tuple[Setting, ...]
    bounds: Mapping[str, str]


def describe_methods() -> dict[str, MethodDescription]:
    """Every method by name, from its recipe and the fields of its class."""
    from promptprior.methods import METHODS
    from promptprior.methods.options import option_fields

    described = {}
    for name, recipe in METHODS.items():
        about, own = inspect.getdoc(inspect.getmodule(type(recipe))) or "", inspect.getdoc(type(recipe)) or ""
        cited = CITATION.search(own) or CITATION.search(about)
        changed, bounds = [], {}
        for item in option_fields(recipe):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if getattr(recipe, item.name) != default:  # what makes a control arm of the recipe
                changed.append(f"{item.name.replace('_', '-')} {getattr(recipe, item.name)}")
            least, above = item.metadata.get("least"), item.metadata.get("above")
            bounds[item.name] = "" if least is None else f", at least {least:g}"
            bounds[item.name] += "" if above is None else f", more than {above:g}"
        described[name] = MethodDescription(
            line=(own or about).splitlines()[0] + (f" ({', '.join(changed)})" if changed else ""),
            paper=cited[0] if cited else "",
            about=about,
            needs_sources=recipe.needs_sources,
            uses_shots=recipe.uses_shots,
            options=tuple(list_settings(type(recipe), default=recipe)),
            bounds=bounds,
        )
    return described


@dataclass(frozen=True)
class MethodsPlan:
    """The settings of `promptprior methods`."""

    action: Literal["list", "show"] = setting("list", "list, or show NAME")
    name: str = setting("", "the method to show")

    def __post_init__(self) -> None:
        if self.action == "show" and not self.name:
            raise SpecError("methods show needs one more word: show NAME")

    def run(self, dry_run: bool) -> None:  # noqa: ARG002 - reading costs nothing
        """List all methods, or show one with its paper and options. Raises SpecError for an unknown name."""
        methods = describe_methods()
        if self.action == "list":
            rows = []
            for name, method in methods.items():
                authors = method.paper.split(", ")
                paper = f"{authors[0]} et al. {method.paper[-4:]}" if len(authors) > 2 else method.paper
                rows.append([name, "yes" if method.needs_sources else "no", paper, method.line])
            return print(format_table(["method", "sources", "paper", "what it does"], rows))
        if self.name not in methods:
            raise SpecError(unknown_name("method", self.name, methods) + " (promptprior methods list)")
        method = methods[self.name]
        learns = "learns a prior from source tasks" if method.needs_sources else "needs no sources"
        shots = "uses the target's shots" if method.uses_shots else "uses no shots"
        print(f"{self.name}: {method.line}\n{learns}; {shots}\n\n{method.about}\n")
        if not method.options:
            return print("It has no options.")
        print(f"options (fit and adapt: --options.KEY; compare: --options.{self.name}.KEY)")
        for option in method.options:
            expected = option.kind + method.bounds[option.key]
            print(f"  {option.key.replace('_', '-')} = {option.default}\n      {option.help} ({expected})")
        return None


VERB = Verb("methods", MethodsPlan, MethodsPlan.run, "promptprior methods show spot", positional=("action", "name"))
