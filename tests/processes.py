"""Processes of Python that start in a third of the time: forked from one that has imported what takes long.

Nothing of Hugging Face is imported there, so what its libraries read of the environment they read anew in each.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

SLOW = [
    "torch", "torch.utils.data", "torch.distributed", "torch._dynamo", "sympy", "numpy", "scipy.stats", "pandas",
    "pyarrow.parquet", "pyarrow.dataset", "sklearn.metrics", "sklearn.datasets", "matplotlib.figure",
    "matplotlib.image", "rich.console", "rich.progress", "rich.table", "rich.live", "typer", "jinja2", "aiohttp",
    "httpx", "requests", "regex", "PIL.Image", "yaml", "packaging.version", "multiprocess", "dill", "xxhash",
    "fsspec", "psutil",
]  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"{__package__}.slow_imports"])


def python(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, folder: str | Path | None = None,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess:  # fmt: skip
    """What `python -c CODE ARGUMENTS` does in a process of its own.

    Args:
        environment: all of it; by default this process's.
        folder: in which it runs.
        timeout: in seconds.
    """
    environment = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as outputs:
        arguments = (code, arguments, environment, str(folder or Path.cwd()), outputs)
        process = _context.Process(target=_run, args=arguments)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(code, timeout)
        out, err = ((Path(outputs) / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(code, process.exitcode, out, err)


def _run(code: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str, outputs: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(outputs, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["-c", *arguments]
    sys.path[0:0] = [""]
    status = 1
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
