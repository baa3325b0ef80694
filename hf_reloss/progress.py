"""Progress bars that would tear others, or that nobody asked for."""

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def without_bars(hidden: bool | None = True) -> Iterator[None]:
    """No bar of transformers is shown here, such as those of loading and writing weights, and of scoring groups.

    Args:
        hidden: whether it is so; if not, bars are shown as they were.
    """
    shown = logging.is_progress_bar_enabled()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
