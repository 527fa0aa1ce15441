"""The command line: each verb parses, builds, and calls one function of the library.

Nothing here imports torch before a verb runs, so help is instant.
"""

from collections.abc import Sequence

from promptprior.interruptions import Interrupted, interruptible

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 128 + signal.

    Ctrl-C is 130 and SIGTERM 143, from the first import on: it may surface as another error, or be swallowed.
    """
    with interruptible() as received:
        try:
            from promptprior.cli.entry import run_command

            return run_command(words)
        except Interrupted as signal:
            code = 128 + signal.signum
    return code
