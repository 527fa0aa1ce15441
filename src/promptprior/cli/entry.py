"""The entry point: find the verb, read its settings, run it; every known error is one message and exit code 2."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from promptprior.cli.arguments import EveryVerb, completion_script, overview, read_words, verb_help
from promptprior.cli.output import only_own_lines
from promptprior.cli.verb import PLAN_FILE, Verb, find_verb
from promptprior.config.mapping import apply_overrides, from_mapping, merge_settings
from promptprior.config.yaml_file import line_of_key, load_yaml
from promptprior.errors import PromptpriorError, SpecError, unknown_name

FAILED, INTERRUPTED = 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    words = sys.argv[1:] if words is None else list(words)
    start = "\n" if sys.stderr.isatty() else ""  # a progress line may stand there
    try:
        with only_own_lines(debug="--debug" in words):
            run(words)
        sys.stdout.flush()
    except PromptpriorError as error:
        if "--debug" in words:
            traceback.print_exc()
        print(f"{start}promptprior: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        text = "promptprior: stopped. Run the same command again: finished work is kept, a fit resumes."
        print(start + text, file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run(words: Sequence[str]) -> None:
    """Show help or run a verb."""
    first, *others = words or ["--help"]
    if first == "--version":
        from importlib.metadata import version

        return print(version("promptprior"))
    if first == "--print-completion":
        return print(completion_script(others))
    if first in ("-h", "--help", "help"):
        return print(verb_help(find_verb(others[0])) if others else overview())
    verb = find_verb(first)
    if {"-h", "--help"} & set(others):
        return print(verb_help(verb))
    plan, common = read_settings(verb, others)
    with all_processes(verb):
        return verb.run(plan, common.dry_run)


def read_settings(verb: Verb, words: Sequence[str]) -> tuple[Any, EveryVerb]:
    """A verb's settings and the flags of every verb. Flags win over the file, the file over the preset.

    Raises SpecError naming the flag, or the file and its line, that is wrong.
    """
    positional, flags = read_words(verb, words)
    names = [name for name in EveryVerb.__dataclass_fields__ if name in flags]
    common = from_mapping(EveryVerb, apply_overrides({}, {n: flags.pop(n) for n in names}), "command line", flags="--")

    if len(positional) > len(verb.positional):
        extra = positional[len(verb.positional)]
        raise SpecError(f"{extra!r} is one word too many for {verb.name}; lists have commas and no spaces: a,b,c")
    without_flag = dict(zip(verb.positional, positional, strict=False))
    file = common.config
    if PLAN_FILE in without_flag:
        if file is not None:
            raise SpecError(f"two plan files, {without_flag[PLAN_FILE]} and --config {file}: give one")
        file = Path(without_flag.pop(PLAN_FILE))
    for name in without_flag.keys() & flags.keys():
        raise SpecError(f"{name} is given twice: {without_flag[name]!r} and --{name} {flags[name]!r}")
    flags |= without_flag

    mapping: Mapping[str, object] = load_yaml(file) if file else {}
    if common.preset is not None and verb.presets is not None:
        presets = {path.stem: path for path in verb.presets.glob("*.yaml")}
        if common.preset not in presets:
            raise SpecError(unknown_name("preset", common.preset, presets) + " (--preset)")
        mapping = merge_settings(mapping, load_yaml(presets[common.preset]))

    def where(key: str) -> str:  # a key came from a flag, a line of the file, or the artifact that settings name
        if file is None or any(key == flag or key.startswith((f"{flag}.", f"{flag}[")) for flag in flags):
            return "command line"
        line = line_of_key(file, key)
        return f"{file}, line {line}" if line else f"{file} and flags" if flags else str(file)

    given = verb.defaults(apply_overrides(mapping, flags))
    return from_mapping(verb.settings, given, where, flags="--"), common


@contextmanager
def all_processes(verb: Verb) -> Iterator[None]:
    """Work with the other processes of this job, if torchrun or accelerate started some; only the first one prints.

    Raises SpecError for a verb whose work is not split.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield
        return
    if not verb.is_parallel:
        raise SpecError(
            f"{verb.name} runs in one process, and this job has {processes} (WORLD_SIZE): start it without torchrun or "
            "accelerate; fit, adapt, evaluate and predict can be split"
        )
    from promptprior.processes import is_first, process_group

    with process_group(), open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_first() else nowhere):
        yield
