"""The command line: each verb parses, builds, and calls one function of the library.

Nothing here imports torch before a verb runs, so help is instant.
"""

from promptprior.cli.entry import main

__all__ = ["main"]
