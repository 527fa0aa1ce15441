"""Loading without what transformers prints meanwhile: its bars and warnings would stand among our own lines."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Neither "Loading weights" bars nor a FutureWarning inside; afterwards bars are as they were."""
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if had_bars:
            logging.enable_progress_bar()
