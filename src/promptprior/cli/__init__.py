"""The command line: each verb parses, builds, and calls one function of the library.

Nothing here imports torch before a verb runs, so help is instant.
"""

from collections.abc import Sequence

from promptprior.interruptions import interruptible

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 130 for Ctrl-C, 143 for
    SIGTERM."""
    with interruptible():  # before the imports, which take a while
        from promptprior.cli.entry import run_command

        return run_command(words)
