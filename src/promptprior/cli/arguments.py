"""Words of a command line to settings, and help and shell completion from the same settings."""

import argparse
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptprior.cli.verb import PLAN_FILE, VERBS, Verb
from promptprior.config.mapping import Setting, list_settings, settings_named
from promptprior.config.training import setting
from promptprior.errors import SpecError, unknown_name

SWITCH, MAPPING = "true or false", "'key: value' settings"  # kinds of settings
OPTIONS = "options"  # the free settings of methods: --options.NAME.KEY
DESCRIPTION = "promptprior: learn soft prompts that transfer from source tasks to targets with few examples."
EXAMPLE = """promptprior compare --methods prompt_tuning,spot --sources noun_polarity,verb_polarity \\
      --targets adjective_polarity --shots 8 --seeds 13,21 --steps 30 --output runs/first"""


@dataclass(frozen=True)
class EveryVerb:
    """Flags of every verb, which are not settings of its work."""

    config: Path | None = setting(None, f"YAML file of settings; flags win over it (as well as {PLAN_FILE})")
    dry_run: bool = setting(False, "say what would run and what it would cost, and stop")
    debug: bool = setting(False, "show the traceback of an error")
    quiet: bool = setting(False, "no progress, notes or warnings: only results and errors")
    json: bool = setting(False, "print one JSON object instead of text")
    preset: str | None = setting(None, "a plan that comes with the library, or list; a file and flags win over it")


def common_settings(verb: Verb) -> list[Setting]:
    """The flags of EveryVerb that a verb has."""
    own = {s.key for s in list_settings(verb.settings)}  # some verbs have a setting json of their own
    common = [s for s in list_settings(EveryVerb) if s.key not in own]
    return [s for s in common if s.key != "preset" or verb.presets is not None]


def read_words(verb: Verb, words: Sequence[str]) -> tuple[list[str], dict[str, str | Mapping[str, str]]]:
    """The words that stand without a flag, and the text of every flag by its dotted key.

    A flag of 'key: value' settings may come once for each key, as KEY=VALUE: then it has its texts by key. Raises
    SpecError for a flag that is unknown, ambiguous, given twice or without its value.
    """
    known = [*list_settings(verb.settings), *common_settings(verb)]
    positional: list[str] = []
    flags: dict[str, str | Mapping[str, str]] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, has_value, text = word[2:].partition("=")
        key = name.replace("-", "_")  # the whole key of a setting, or the end of just one
        meant = settings_named(name, known)
        if len(meant) > 1:
            raise SpecError(f"flag --{name} is ambiguous: say {' or '.join(s.flag for s in meant)}")
        if not meant and key.startswith(f"{OPTIONS}.") and any(s.key == OPTIONS for s in known):
            meant = [Setting(key, "a value", None, "")]
        if not meant:
            raise SpecError(unknown_name("flag", f"--{name}", [s.flag for s in known]))
        [found] = meant
        if not has_value and found.kind == SWITCH:  # needs no value, and may have one
            text = left.pop(0) if left and left[0].lower() in ("true", "false") else "true"
        elif not has_value:
            if not left or left[0].startswith("--"):
                raise SpecError(f"flag {found.flag} needs a value: {found.kind}")
            text = left.pop(0)
        part, is_pair, value = text.partition("=")
        before = flags.get(found.key, {})
        if found.kind == MAPPING and is_pair and not text.startswith("{") and not isinstance(before, str):
            if part in before:
                raise SpecError(f"flag --{name} {part} is given twice; give it once, lists with commas")
            flags[found.key] = {**before, part: value}
            continue
        if found.key in flags:
            raise SpecError(f"flag --{name} is given twice; give it once, lists with commas")
        flags[found.key] = text
    return positional, flags


# Help and completion -------------------------------------------------------------------------------------


def verb_parser(verb: Verb, parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """An argparse parser that knows a verb's flags; it prints help and completes, `read_words` reads."""
    parser = parser or argparse.ArgumentParser(add_help=False)
    words = " ".join(word.upper() if word != PLAN_FILE else f"[{word}]" for word in verb.positional)
    words = f"{PLAN_FILE} …" if verb.is_queue else words
    parser.usage = f"promptprior {verb.name} {words} [--key value …]"
    summary = VERBS[verb.name][0] if verb.name in VERBS else str(verb.settings.__doc__)
    parser.description = f"{summary}\n\n  {verb.example}"
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(
        prog, max_help_position=28, width=max(60, min(shutil.get_terminal_size().columns, 110))
    )
    settings = list(list_settings(verb.settings))
    shared = [s for s in settings if s.key.startswith("settings.")]
    parts: Mapping[str, Iterable[Setting]] = {
        "settings": [s for s in settings if s not in shared],
        "shared by all methods": shared,
        "every verb": common_settings(verb),
    }
    for title, some in parts.items():
        group = parser.add_argument_group(title)
        for s in some:
            default = "required" if s.default is None else f"default {s.default}"
            text = f"{s.help or s.kind} ({default})".replace("%", "%%")
            if s.kind == SWITCH:
                group.add_argument(s.flag, action="store_true", help=text)
            elif s.kind.startswith("one of "):
                choices = s.kind.removeprefix("one of ").removesuffix(" or null").split(", ")
                group.add_argument(s.flag, choices=choices, metavar="NAME", help=text)
            else:
                words_of_kind = s.kind.removeprefix("a ").removeprefix("whole ").replace("'key:", "key").split()
                action = group.add_argument(s.flag, metavar=words_of_kind[0].upper(), help=text)
                if "a path" in s.kind:
                    action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    return parser
