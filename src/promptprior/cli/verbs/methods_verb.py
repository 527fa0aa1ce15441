"""promptprior methods: list the methods, or show what one does and its options."""

import inspect
import re
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from promptprior.cli.output import format_table, show
from promptprior.cli.verb import Verb
from promptprior.config.mapping import list_settings
from promptprior.config.training import setting
from promptprior.errors import SpecError, unknown_name

CITATION = re.compile(r"[A-Z][\w-]+(?:,? (?:[A-Z][\w-]+|et al\.))* (?:19|20)\d\d")  # "Finn et al. 2017"


def describe_method(recipe: Any) -> tuple[str, str, str]:
    """A method's line in a list, its paper, and the docstring of its module."""
    from promptprior.methods.options import option_fields

    about, own = inspect.getdoc(inspect.getmodule(type(recipe))) or "", inspect.getdoc(type(recipe)) or ""
    cited = CITATION.search(own) or CITATION.search(about)
    changed = []  # what makes a control arm of the recipe
    for item in option_fields(recipe):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if getattr(recipe, item.name) != default:
            changed.append(f"{item.name.replace('_', '-')} {getattr(recipe, item.name)}")
    line = (own or about).splitlines()[0] + (f" ({', '.join(changed)})" if changed else "")
    return line, cited[0] if cited else "", about


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
        from promptprior.methods import METHODS
        from promptprior.methods.options import option_fields

        heads = ["method", "sources", "paper", "what it does"]
        if self.action == "list":
            rows = []
            for name, recipe in METHODS.items():
                line, paper, _ = describe_method(recipe)
                authors = paper.split(", ")
                paper = f"{authors[0]} et al. {paper[-4:]}" if len(authors) > 2 else paper
                rows.append([name, "yes" if recipe.needs_sources else "no", paper, line])
            return show(format_table(heads, rows), [dict(zip(heads, row, strict=True)) for row in rows])
        if self.name not in METHODS:
            raise SpecError(unknown_name("method", self.name, METHODS) + " (promptprior methods list)")
        method = METHODS[self.name]
        line, paper, about = describe_method(method)
        learns = "learns a prior from source tasks" if method.needs_sources else "needs no sources"
        shots = "uses the target's shots" if method.uses_shots else "uses no shots"
        lines, listed = [f"{self.name}: {line}\n{learns}; {shots}\n\n{about}\n"], dict[str, dict[str, str]]()
        options = list(list_settings(type(method), default=method))
        at = f"options (fit and adapt: --options.KEY; compare: --options.{self.name}.KEY)"
        lines.append(at if options else "It has no options.")
        for option, item in zip(options, option_fields(method), strict=True):
            least, above = item.metadata.get("least"), item.metadata.get("above")
            expected = option.kind + ("" if least is None else f", at least {least:g}")
            expected += "" if above is None else f", more than {above:g}"
            lines.append(f"  {option.key.replace('_', '-')} = {option.default}\n      {option.help} ({expected})")
            listed[option.key] = {"default": str(option.default), "help": str(option.help), "expected": expected}
        said = {"method": self.name, "sources": method.needs_sources, "shots": method.uses_shots, "paper": paper}
        return show("\n".join(lines), {**said, "what it does": line, "about": about, "options": listed})


VERB = Verb("methods", MethodsPlan, MethodsPlan.run, "promptprior methods show spot", positional=("action", "name"))
