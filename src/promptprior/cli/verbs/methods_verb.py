"""promptprior methods: list the methods, or show what one does and its options."""

import inspect
import re
from dataclasses import dataclass
from typing import Literal

from promptprior.cli.output import format_table
from promptprior.cli.verb import Verb
from promptprior.config.mapping import Setting, settings_of
from promptprior.config.training import setting
from promptprior.errors import SpecError, unknown_name

FACTS = ("name", "needs_sources", "uses_shots")  # what a method is, not how it is tuned
READ_ELSEWHERE = ("help", "formerly", "omit_from_hash_if_default")


@dataclass(frozen=True)
class MethodDescription:
    """What help says about a method; `about` is the docstring of its module, which cites its paper."""

    name: str
    line: str
    paper: str
    about: str
    needs_sources: bool
    uses_shots: bool
    options: tuple[Setting, ...]
    bounds: dict[str, str]  # by option: "least 1"


def describe_methods() -> dict[str, MethodDescription]:
    """Every method by name, as its class and the fields of it say."""
    from promptprior.methods import METHODS

    described = {}
    for name, recipe in METHODS.items():
        cls = recipe if isinstance(recipe, type) else type(recipe)
        method = recipe() if isinstance(recipe, type) else recipe
        about, own = inspect.getdoc(inspect.getmodule(cls)) or "", inspect.getdoc(cls) or ""
        # "(Finn et al. 2017)" of the class, or what stands before the first year in its module's docstring
        cited = re.search(r"\(([^()]+ (?:19|20)\d\d)\)", own) or re.search(
            r"^(.+? (?:19|20)\d\d)\b", about, re.MULTILINE
        )
        described[name] = MethodDescription(
            name=name,
            line=(own or about).splitlines()[0],
            paper=cited[1] if cited else "",
            about=about,
            needs_sources=bool(method.needs_sources),
            uses_shots=bool(method.uses_shots),
            options=tuple(s for s in settings_of(cls, default=method) if s.key not in FACTS),
            bounds={
                field.name: ", ".join(f"{key} {v}" for key, v in field.metadata.items() if key not in READ_ELSEWHERE)
                for field in cls.__dataclass_fields__.values()
            },
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
            rows = [[m.name, "yes" if m.needs_sources else "no", m.paper, m.line] for m in methods.values()]
            return print(format_table(["method", "sources", "paper", "what it does"], rows))
        if self.name not in methods:
            raise SpecError(unknown_name("method", self.name, methods) + " (promptprior methods list)")
        method = methods[self.name]
        learns = "learns a prior from source tasks" if method.needs_sources else "needs no sources"
        shots = "uses the target's shots" if method.uses_shots else "uses no shots"
        print(f"{method.name}: {method.line}\n{learns}; {shots}\n\n{method.about}\n")
        if not method.options:
            return print("no options")
        print(f"options (fit and adapt: --options.KEY; compare: --options.{self.name}.KEY)")
        for option in method.options:
            bounds = method.bounds.get(option.key)
            expected = f"{option.kind}, {bounds}" if bounds else option.kind
            print(f"  {option.key.replace('_', '-')} = {option.default}\n      {option.help} ({expected})")
        return None


VERB = Verb("methods", MethodsPlan, MethodsPlan.run, "promptprior methods show spot", positional=("action", "name"))
