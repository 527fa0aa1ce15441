"""The entry point: find the verb, read its settings, run it; every known error is one message and exit code 2."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptprior.cli.arguments import Arguments, read_arguments
from promptprior.cli.help import common, overview, verb_help
from promptprior.cli.launch import all_processes
from promptprior.cli.verb import PLAN_FILE, Verb
from promptprior.cli.verb_table import VERBS, find_verb
from promptprior.config.mapping import apply_overrides, from_mapping, load_yaml, settings_of
from promptprior.errors import PromptpriorError, SpecError, unknown_name

FAILED, INTERRUPTED = 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    words = sys.argv[1:] if words is None else list(words)
    try:
        run(words)
        sys.stdout.flush()
    except PromptpriorError as error:
        if "--debug" in words:
            traceback.print_exc()
        complain(f"promptprior: {error}")
        return FAILED
    except KeyboardInterrupt:
        complain("promptprior: stopped. Run the same command again: finished work is kept, a fit goes on.")
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def complain(text: str) -> None:
    """A message on stderr, below a progress line that may stand there."""
    print(("\n" if sys.stderr.isatty() else "") + text, file=sys.stderr)


def run(words: Sequence[str]) -> None:
    """Show help or run a verb."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar for reading weights hides our own lines
    if words and words[0] == "--version":
        from importlib.metadata import version

        return print(version("promptprior"))
    if not words or words[0] in ("-h", "--help", "help"):
        return print(verb_help(find_verb(words[1])) if words[1:] else overview())
    if words[0] not in VERBS:
        raise SpecError(unknown_name("verb", words[0], VERBS))
    verb = find_verb(words[0])
    if {"-h", "--help"} & set(words):
        return print(verb_help(verb))
    return run_verb(verb, words[1:])


def run_verb(verb: Verb, words: Sequence[str]) -> None:
    """Read the settings of a verb from its file and flags, and run it."""
    arguments = read_arguments(words, [*settings_of(verb.settings), *common(verb)])
    flags, given = dict(arguments.flags), {}
    for setting in common(verb):
        if setting.flag[2:] in flags:
            given[setting.flag[2:]] = flags.pop(setting.flag[2:])
    flags, file = placed(verb, arguments, flags, given.get("config"))
    mapping = load_yaml(Path(file)) if file else {}
    if "preset" in given:
        mapping = over_preset(mapping, verb, given["preset"])
    mapping = apply_overrides(mapping, flags)
    where = file if file and not flags else f"{file} and flags" if file else "command line"
    plan: Any = from_mapping(verb.settings, verb.defaults(mapping), where)
    with all_processes(verb):
        verb.run(plan, given.get("dry-run") == "true")


def over_preset(mapping: Mapping[str, object], verb: Verb, name: str) -> dict[str, object]:
    """Settings over those of a plan that comes with the library. Raises SpecError for an unknown name."""
    from promptprior.cli.common import filled

    assert verb.presets is not None
    known = {path.stem: path for path in verb.presets.glob("*.yaml")}
    if name not in known:
        raise SpecError(unknown_name("preset", name, known) + " (--preset)")
    return filled(mapping, load_yaml(known[name]))


def placed(
    verb: Verb, arguments: Arguments, flags: Mapping[str, str], file: str | None
) -> tuple[dict[str, str], str | None]:
    """The flags with words that need none put in their place, and the plan file."""
    if len(arguments.positional) > len(verb.positional):
        extra = arguments.positional[len(verb.positional)]
        raise SpecError(f"{extra!r} is one word too many for {verb.name}; lists have commas and no spaces: a,b,c")
    given = dict(zip(verb.positional, arguments.positional, strict=False))
    if PLAN_FILE in given and file is not None:
        raise SpecError(f"two plan files, {given[PLAN_FILE]} and --config {file}: give one")
    file = given.pop(PLAN_FILE, file)
    twice = sorted(given.keys() & flags.keys())
    if twice:
        raise SpecError(f"{twice[0]} is given twice: {given[twice[0]]!r} and --{twice[0]} {flags[twice[0]]!r}")
    return {**flags, **given}, file
