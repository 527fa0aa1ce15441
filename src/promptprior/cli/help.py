"""Help texts, made from the settings themselves."""

import shutil
import textwrap
from collections.abc import Iterator

from promptprior.cli.arguments import SWITCH, short
from promptprior.cli.verb import PLAN_FILE, Verb
from promptprior.cli.verb_table import VERBS
from promptprior.config.mapping import Setting, settings_of

COMMON = (
    Setting("--config", "a path", "null", f"YAML file of settings; flags win over it (as well as {PLAN_FILE})"),
    Setting("--dry-run", SWITCH, "false", "say what would run and what it would cost, and stop"),
    Setting("--debug", SWITCH, "false", "show the traceback of an error"),
)
PRESET = Setting("--preset", "a name", "null", "a plan that comes with the library; a file and flags win over it")
EXAMPLE = """promptprior compare --methods prompt_tuning,spot --sources noun_polarity,verb_polarity \\
      --targets adjective_polarity --shots 8 --seeds 13,21 --steps 30 --output runs/first"""


def common(verb: Verb) -> tuple[Setting, ...]:
    """Flags of a verb that are not settings of its work."""
    return COMMON if verb.presets is None else (PRESET, *COMMON)


def overview() -> str:
    """All verbs, a line each, and an example."""
    verbs = "\n".join(f"  {name:10}{line}" for name, (line, _) in VERBS.items())
    return (
        "promptprior: learn soft prompts that transfer from source tasks to targets with few examples.\n\n"
        f"{verbs}\n\nexample\n  {EXAMPLE}\n\n"
        "promptprior VERB --help lists the settings of a verb with their defaults."
    )


def verb_help(verb: Verb) -> str:
    """Everything a verb can be told."""
    words = " ".join(f"{word.upper()}" if word != PLAN_FILE else f"[{word}]" for word in verb.positional)
    lines = [f"promptprior {verb.name} {words} [--key value …]", "", VERBS[verb.name][0], "", f"  {verb.example}"]
    plain = [s for s in settings_of(verb.settings) if not is_shared(s)]
    shared = [s for s in settings_of(verb.settings) if is_shared(s)]
    for title, settings in (("settings", plain), ("shared by all methods", shared), ("every verb", list(common(verb)))):
        if settings:
            lines += ["", title, *(line for s in settings for line in setting_lines(s))]
    return "\n".join(lines)


def is_shared(setting: Setting) -> bool:
    """Whether a setting is one of settings.py."""
    return short(setting) != setting.flag


def setting_lines(setting: Setting, column: int = 28) -> Iterator[str]:
    """A flag with its meaning, kind and default, wrapped to the terminal."""
    default = "required" if setting.default is None else f"default {setting.default}"
    says = f"{setting.help or setting.kind} ({default})"
    width = max(40, min(shutil.get_terminal_size().columns, 110) - column)
    first, *rest = textwrap.wrap(says, width) or [""]
    flag = f"  {short(setting)}"
    if len(flag) >= column:
        yield flag
        flag = ""
    yield f"{flag:{column}}{first}"
    yield from (" " * column + line for line in rest)
