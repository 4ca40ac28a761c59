"""Several processes on one machine that meet as torchrun's do, with one thread each."""

import io
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import PRELOADED, child

SECONDS = 120
"""Longer than anything here takes; whoever takes longer hangs."""


def _address() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def _as_rank(environment: dict[str, str], before: Callable[[], None] | None = None) -> None:
    os.environ.update(environment)
    if before is not None:
        before()


def _environments(count: int) -> list[dict[str, str]]:
    shared = _address() | {"WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(count)]


class Started:
    """`hwsim ARGUMENTS…` in several processes. before: rank → what is called in it first."""

    def __init__(self, folder: Path, *arguments: str | Path, count: int = 2, before: dict[int, Any] | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank{r}" for r in range(count)]
        self.processes = [
            child(log, *arguments, before=partial(_as_rank, env, (before or {}).get(r)))
            for r, (log, env) in enumerate(zip(self.logs, _environments(count), strict=True))
        ]

    def ended(self) -> tuple[list[int], list[list[str]]]:
        """(exit codes, lines that each said). A process that does not end is a failure."""
        latest = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.0, latest - time.monotonic()))
        said = [log.read_text().splitlines() for log in self.logs]
        hanging = [p for p in self.processes if p.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, said
        return [p.exitcode for p in self.processes], said


def together(work: Callable, *arguments: Any, count: int = 2) -> list:
    """What `work(ranks, *arguments)` returns in each process, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_worked, args=(env, results, work, arguments), daemon=True)
        for env in _environments(count)
    ]
    for process in processes:
        process.start()
    found = {}
    latest = time.monotonic() + SECONDS
    while len(found) < count:
        if results.empty():
            assert time.monotonic() < latest and all(p.exitcode in (None, 0) for p in processes)
            time.sleep(0.01)
            continue
        rank, payload = results.get()
        found[rank] = torch.load(io.BytesIO(payload), weights_only=False)
    for process in processes:
        process.join(30)
    return [found[r] for r in range(count)]


def _worked(environment: dict[str, str], results, work: Callable, arguments: tuple) -> None:
    from hwsim.recipe.ranks import join

    _as_rank(environment)
    torch.set_num_threads(1)
    ranks = join()
    payload = io.BytesIO()
    torch.save(work(ranks, *arguments), payload)
    results.put((ranks.rank, payload.getvalue()))
    ranks.leave(0)
