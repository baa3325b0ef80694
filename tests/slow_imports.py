"""What tests/processes.py imports once for all processes."""

import contextlib
import importlib

from .processes import SLOW

for name in SLOW:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
