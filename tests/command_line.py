"""The command line called within the test's process, or in a child that may be killed."""

import contextlib
import functools
import io
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hwsim import cli

TINY = str(Path(__file__).parent / "tiny.yaml")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was said on standard error, without empty lines."""
        return [line for line in self.err.splitlines() if line.strip()]


@functools.cache
def _start_kernels() -> None:
    """numba's first kernel sets the number of threads of torch; afterwards it stays as we set it."""
    import torch

    from hwsim.network.layer import BNTT

    BNTT(1, 1)(torch.zeros(1, 1, 1, 2, 2), leak=1.0, threshold=1.0)


def hwsim(*arguments: str | Path) -> Done:
    """`hwsim ARGUMENTS…` on one thread; a traceback would come through as an exception."""
    import torch

    _start_kernels()
    torch.set_num_threads(1)
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["hwsim", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as e:
        return Done(int(e.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("main ends with sys.exit")


def refused(*arguments: str | Path) -> str:
    """What a command says that must end with exit code 2 before it has done anything."""
    done = hwsim(*arguments)
    assert done.code == 2, done
    assert not done.out, done.out
    assert "Traceback" not in done.err
    return done.err


PRELOADED = [
    "hwsim.recipe.run", "hwsim.recipe.summary", "hwsim.network.lif_cpu", "sklearn.datasets", "scipy.stats",
    "matplotlib.figure", "matplotlib.backends.backend_agg",
]  # fmt: skip
"""What a child need not import again; none of them starts a thread before it computes."""


def child(log: Path, *arguments: str | Path, before=None) -> multiprocessing.Process:
    """The same in a process of its own, started and not waited for. `before(…)` is called in it first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_main, args=(str(log), [str(a) for a in arguments], before), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_NUM_THREADS", "1")
        process.start()
    return process


def _main(log: str, arguments: list[str], before) -> None:
    import torch

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 (until the process ends)
    os.dup2(sys.stdout.fileno(), 2)
    sys.argv = ["hwsim", *arguments]
    if before is not None:
        before()
    cli.main()
