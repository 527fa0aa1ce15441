"""The command line: each verb parses, builds, and calls one function of the library.

Nothing here imports torch before a verb runs, so help is instant.
"""

import signal
import sys
from collections.abc import Sequence

from promptprior.interruptions import interruptible, received_signal

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 2 for an error that the user can mend, 130 for Ctrl-C, 143 for
    SIGTERM."""
    words = sys.argv[1:] if words is None else list(words)
    with interruptible():  # before the imports, which take a while
        try:
            from promptprior.cli.entry import run_command

            return run_command(words)
        except (Exception, KeyboardInterrupt) as error:
            signum = received_signal() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0)
            if not signum:  # else it is the interruption, whatever error an interrupted import made of it
                raise
            start = "\n" if sys.stderr.isatty() else ""  # a progress line may stand there
            resumes = words[:1] in (["fit"], ["adapt"], ["compare"])
            advice = " Run the same command again: it resumes, and finished work is kept." if resumes else ""
            print(f"{start}promptprior: stopped by {signal.Signals(signum).name}.{advice}", file=sys.stderr)
            return 128 + signum
