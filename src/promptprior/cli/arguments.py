"""Words of a command line to settings: strict, with the nearest known flag for an unknown one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from promptprior.config.mapping import Setting
from promptprior.errors import SpecError, unknown_name

PREFIX = "settings."
SWITCH = "true or false"
FREE = "options."


@dataclass(frozen=True)
class Arguments:
    """What was given: words without a flag, and the text of each setting by its dotted key."""

    positional: tuple[str, ...]
    flags: Mapping[str, str]


def read_arguments(words: Sequence[str], known: Sequence[Setting]) -> Arguments:
    """Words as settings. Raises SpecError for a flag that is unknown, ambiguous, given twice or without its value."""
    positional: list[str] = []
    flags: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        setting = setting_of(name, known)
        key = setting.flag[2:]
        if key in flags:
            raise SpecError(f"flag --{name} is given twice; give it once, lists with commas")
        flags[key] = value if has_value else following(left, setting)
    return Arguments(tuple(positional), flags)


def following(left: list[str], setting: Setting) -> str:
    """Take the value that follows a flag; a switch needs none."""
    if setting.kind == SWITCH:
        return left.pop(0) if left and left[0] in ("true", "false") else "true"
    if not left or left[0].startswith("--"):
        raise SpecError(f"flag {short(setting)} needs a value: {setting.kind}")
    return left.pop(0)


def setting_of(name: str, known: Sequence[Setting]) -> Setting:
    """The setting that a flag means: its whole key, or the end of just one key."""
    wanted = name.replace("_", "-")
    exact = [s for s in known if s.flag[2:] in (wanted, PREFIX + wanted)]
    found = exact or [s for s in known if s.flag.endswith("." + wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"flag --{name} is ambiguous: say {' or '.join(map(short, found))}")
    if wanted.startswith(FREE) and any(s.flag[2:] + "." == FREE for s in known):
        return Setting("--" + name, "a value", None, "")
    raise SpecError(unknown_name("flag", f"--{name}", names_of(known)))


def names_of(known: Sequence[Setting]) -> Iterator[str]:
    """The flags that help shows."""
    return map(short, known)


def short(setting: Setting) -> str:
    """A flag as people write it: shared settings go without their prefix.

    >>> short(Setting("--settings.target.steps", "a whole number", "60", ""))
    '--target.steps'
    """
    return "--" + setting.flag[2:].removeprefix(PREFIX)
