"""The command line: each verb parses, builds, and calls one function of the library.

Nothing here imports torch before a verb runs, so help is instant.
"""

import signal
import sys
from collections.abc import Sequence

from promptprior.interruptions import Interrupted, interruptible

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 130 for Ctrl-C, 143 for
    SIGTERM."""
    arguments = sys.argv[1:] if words is None else list(words)
    try:
        with interruptible(owns_process=words is None):  # before the imports, which take a while
            from promptprior.cli.entry import run_command

            return run_command(arguments)
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        start = "\n" if sys.stderr.isatty() else ""  # a progress line may stand there
        resumes = arguments[:1] in (["fit"], ["adapt"], ["compare"], ["queue"])
        advice = " Run the same command again: it resumes, and finished work is kept." if resumes else ""
        print(f"{start}promptprior: stopped by {signal.Signals(signum).name}.{advice}", file=sys.stderr)
        return 128 + signum
