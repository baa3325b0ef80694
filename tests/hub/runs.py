"""Processes that speak to a loopback Hub, and what they said."""

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

from ..processes import python
from .server import TOKEN, Hub

RELOSS = "from hf_reloss.cli import app; app()"

LOSSES = """
import sys
import torch
from hf_reloss import AutoSurrogate

logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(3))
labels = torch.arange(50) % 5
for place in sys.argv[1:]:
    print(AutoSurrogate.from_pretrained(place)(logits, labels).item().hex())
"""
"""Prints the loss of each surrogate that is named."""


def client_of(hub: Hub, folder: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs Python, or the command `reloss`, as somebody with a fresh cache or that of a former call."""

    def run(code: str, *arguments: str, cache: str = "cache", token: str | None = TOKEN) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / cache), "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200",
        } | ({"HF_TOKEN": token} if token else {})  # fmt: skip
        code = RELOSS if code == "reloss" else textwrap.dedent(code)
        return python(code, *arguments, environment=environment)

    return run


def said(run: subprocess.CompletedProcess) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.strip()


def refused(run: subprocess.CompletedProcess) -> str:
    """The error, which is one paragraph and no traceback, as one line."""
    assert run.returncode == 1, run.stdout + run.stderr
    return complaint(run.stdout, run.stderr)


def complaint(output: str, log: str = "") -> str:
    assert "Traceback" not in output + log, output + log
    assert output.startswith("error: "), output
    assert "\n\n" not in output.strip(), output
    return " ".join(output.split())
