"""The entry point: find the verb, read its settings, run it; every known error is one message and exit code 2."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from promptprior import plugins
from promptprior.cli.arguments import DESCRIPTION, EXAMPLE, EveryVerb, common_settings, read_words, verb_parser
from promptprior.cli.output import AS_JSON, only_own_lines
from promptprior.cli.verb import PLAN_FILE, PLUGINS, VERBS, Verb, find_verb
from promptprior.config.mapping import apply_overrides, from_mapping, merge_settings
from promptprior.config.presets import LIST, read_presets
from promptprior.config.yaml_file import line_of_key, load_yaml
from promptprior.errors import PromptpriorError, SpecError, unknown_name
from promptprior.interruptions import raise_if_interrupted

FAILED = 2
LONGEST_MESSAGE = 3000  # characters
TO_CHANGE = r"(?<![\w-])--[a-z][\w.-]*( [A-Z]{2,}\b)?|did you mean '[^']*'( or '[^']*')*|pip install [\w'\[\], .-]+"


def run_command(words: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0; 1 where a comparison has cells that failed; 2 for an error that the user can mend.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is None:  # the next file that is opened would be taken for it
        print("promptprior: standard output is closed; send it to a file or /dev/null", file=sys.stderr)
        return FAILED
    start = "\n" if sys.stderr.isatty() else ""  # a progress line may stand there
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # LANG=C knows few letters
    try:
        with only_own_lines(debug="--debug" in words, quiet="--quiet" in words):
            code = run(words)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (PromptpriorError, OSError, MemoryError, RuntimeError) as error:
        raise_if_interrupted()  # an interrupted import may end in any error
        is_own, message = isinstance(error, PromptpriorError), str(error)
        if not is_own:  # the last resort: whoever wants a path or memory says more
            is_memory = isinstance(error, MemoryError) or "allocate memory" in message or "out of memory" in message
            if isinstance(error, RuntimeError) and not is_memory:
                raise
            message = "memory is used up; lower the batch size, the prompt length or the method's sizes"
        if isinstance(error, OSError):
            what, reason = error.filename or "what was printed", error.strerror or error
            message = f"{what}: {reason}; check the path and the disk"
        if "--debug" in words:
            traceback.print_exc()
        if len(message) > LONGEST_MESSAGE:  # it may quote what a stranger wrote, control characters too
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} … ({len(message) - 2 * half:,} characters left out) … {message[-half:]}"
        printable = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)
        if sys.stderr.isatty():  # what to change stands out; a terminal without bold, or NO_COLOR, shows it plain
            from rich.console import Console
            from rich.text import Text

            text = Text(f"{start}promptprior: {printable}")
            text.highlight_regex(TO_CHANGE, "bold")
            Console(stderr=True, soft_wrap=True).print(text)
        else:
            print(f"{start}promptprior: {printable}", file=sys.stderr)
        if not is_own:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return FAILED


def run(words: Sequence[str]) -> int | None:
    """Show help, print a completion script or run a verb; returns what the verb does. Raises SpecError for unknown
    words, verbs and shells."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise SpecError(f"{ascii(word)[:200]} is not UTF-8; expected words of text") from error
    first, *others = words or ["--help"]
    if first == "--version":
        from importlib.metadata import version

        return print(version("promptprior"))
    if first == "--print-completion":
        import shtab

        shell = others[0] if others else "none given"
        if shell not in shtab.SUPPORTED_SHELLS:
            raise SpecError(unknown_name("shell", shell, shtab.SUPPORTED_SHELLS) + " (--print-completion)")
        parser = argparse.ArgumentParser("promptprior", description=DESCRIPTION)
        verbs = parser.add_subparsers()
        for name, (line, _) in VERBS.items():
            verb_parser(find_verb(name), verbs.add_parser(name, help=line))
        return print(shtab.complete(parser, shell))
    if first in ("-h", "--help", "help"):
        if not others:
            lines = [f"  {name:12}{line}" for name, (line, _) in VERBS.items()]
            lines += [f"  {name:12}added by another package" for name in plugins.load_plugins(PLUGINS, VERBS)]
            end = "promptprior VERB --help lists the settings of a verb with their defaults;\n"
            end += "promptprior --print-completion bash (or zsh, tcsh) prints a completion script."
            return print(*(DESCRIPTION, "", *lines, "", "example", f"  {EXAMPLE}", "", end), sep="\n")
        first, others = others[0], ["--help"]
    verb = find_verb(first)
    if {"-h", "--help"} & set(others):
        return print(verb_parser(verb).format_help().rstrip())
    positional, flags = read_words(verb, others)
    if verb.presets is not None and flags.get("preset") == LIST:
        presets = read_presets(verb.presets)
        width = max(map(len, presets), default=0)
        print(f"{'preset':{width}} sources -> targets")
        for name, preset in presets.items():
            sizes = f"{len(preset.get('sources', ())):>4} -> {len(preset.get('targets', ())):<3}"
            print(f"{name:{width}} {sizes} {preset.get('about', '')}".rstrip())
        return None
    if verb.is_queue and not positional:
        raise SpecError(f"{verb.name} needs plan files: {verb.example}")
    of_each = [[file] for file in positional] if verb.is_queue else [positional]
    plans, commons = zip(*(read_settings(verb, own, flags) for own in of_each), strict=True)
    for plan in plans:
        check_outputs(verb, plan)
    AS_JSON.set(commons[0].json or bool(getattr(plans[0], "json", False)))
    with all_processes(verb):
        return verb.run(dict(zip(positional, plans, strict=True)) if verb.is_queue else plans[0], commons[0].dry_run)


def read_settings(
    verb: Verb, positional: Sequence[str], given: Mapping[str, str | Mapping[str, str]]
) -> tuple[Any, EveryVerb]:
    """A verb's settings and the flags of every verb, from what `read_words` read.

    Flags win over the file, the file over the preset. Raises SpecError naming the flag, or the file and its line, that
    is wrong.
    """
    flags = dict(given)
    names = [s.key for s in common_settings(verb) if s.key in flags]
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
        presets = read_presets(verb.presets)
        if common.preset not in presets:
            raise SpecError(unknown_name("preset", common.preset, presets) + " (--preset; --preset list prints all)")
        preset = {key: value for key, value in presets[common.preset].items() if key != "about"}
        mapping = merge_settings(mapping, preset)

    def where(key: str) -> str:  # a key came from a flag, a line of the file, or the artifact that settings name
        if file is None or any(key == flag or key.startswith((f"{flag}.", f"{flag}[")) for flag in flags):
            return "command line"
        line = line_of_key(file, key)
        return f"{file}, line {line}" if line else f"{file} and flags" if flags else str(file)

    values = verb.defaults(apply_overrides(mapping, flags))
    return from_mapping(verb.settings, values, where, flags="--"), common


LONGEST_NAME = 200  # bytes; files beside it have longer names


def check_outputs(verb: Verb, plan: Any) -> None:
    """Raise SpecError for an output whose name cannot be written, before any work."""
    for name in ("output", "markdown", "csv", "table", "tensorboard"):
        path = getattr(plan, name, None)
        if not isinstance(path, Path):
            continue
        what = f"{str(path)[:200]!r} (--{name})"
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise SpecError(f"{what}: a name of {len(path.name)} characters; expected at most {LONGEST_NAME} bytes")
        try:
            stands = path.resolve()
            above = next(folder for folder in stands.parents if folder.exists())
        except (OSError, ValueError, StopIteration) as error:  # too long, NUL, links in a circle, the root itself
            reason = getattr(error, "strerror", None) or str(error) or "the root of all folders"
            raise SpecError(f"{what}: {reason}; choose another folder") from error
        if path.name in ("", "..") and not (verb.name in ("compare", "fit") and path.name == ""):
            raise SpecError(f"{what}: expected the name of what is to be written; this is a folder that stands")
        if not above.is_dir():
            raise SpecError(f"{what}: {above} is a file; expected a folder that it can be written in")
        if not os.access(above, os.W_OK):
            raise SpecError(f"{what}: {above} may not be written; choose another folder")


@contextmanager
def all_processes(verb: Verb) -> Iterator[None]:
    """Work with the other processes of this job, if torchrun or accelerate started some; only the first one prints.

    Raises SpecError for a verb whose work is not split.
    """
    size = os.environ.get("WORLD_SIZE", "") or "1"
    if not size.isdecimal() or int(size) == 0:
        raise SpecError(f"WORLD_SIZE is {size!r}; expected a number of processes, 1 or more: unset it")
    processes = int(size)
    # accelerate names the address where processes meet when it is asked for several, but starts one without GPUs.
    if processes == 1 and os.environ.get("MASTER_ADDR") and "ACCELERATE_USE_CPU" in os.environ:
        raise SpecError(
            "accelerate launch was asked for several processes and started one, as it does without several GPUs: add "
            "--multi-gpu (it serves CPUs too), or use torchrun --nproc-per-node"
        )
    if processes == 1:
        yield
        return
    if not verb.is_parallel:
        raise SpecError(
            f"{verb.name} runs in one process, and this job has {processes} (WORLD_SIZE): start it without torchrun or "
            "accelerate; fit, adapt, evaluate and predict can be split"
        )
    unset = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    rank = os.environ.get("RANK", "")
    if unset or not rank.isdecimal() or int(rank) >= processes:
        wrong = f"{', '.join(unset)} missing" if unset else f"RANK is {rank!r}"
        raise SpecError(
            f"WORLD_SIZE is {processes} and {wrong}: start all processes by torchrun or accelerate, which set them, or "
            "unset WORLD_SIZE"
        )
    import torch
    import torch.distributed as dist

    from promptprior.processes import is_first

    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # "cuda" is each process's own device
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_first() else nowhere):
            yield
    finally:
        dist.destroy_process_group()
