"""What a run tells while it works: a live bar on a terminal, plain lines elsewhere, nothing with `--quiet`."""

import signal
import sys
import time
from contextlib import contextmanager

_interrupts: list[int] = []


def listen() -> None:
    """Remember that Ctrl-C was pressed: Python raises `KeyboardInterrupt` wherever it is, and loses one that meets the
    callback of a dying object. Whoever reports progress raises it again.
    """

    def heard(number: int, frame: object) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, heard)


def _stop_if_interrupted() -> None:
    if _interrupts:
        raise KeyboardInterrupt


class Progress:
    """Messages to standard error, so that standard output holds only results."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet or sys.stderr is None  # None: closed before the start
        self.live = not self.quiet and sys.stderr.isatty()
        self._bar = None
        self._tenths: dict[str, int] = {}

    def say(self, text: str) -> None:
        """One line."""
        _stop_if_interrupted()
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def fetched(self, name: str, done: int, total: int | None) -> None:
        """How far the download of a file is: a line for every tenth of it, or for every 16 MiB of unknown length."""
        tenth = 10 * done // total if total else done // 2**24
        if tenth > self._tenths.get(name, -1):
            self._tenths[name] = tenth
            of = f" of {total / 2**20:,.1f} MiB ({100 * done // total} %)" if total else ""
            self.say(f"fetching {name}: {done / 2**20:,.1f} MiB{of}")

    @contextmanager
    def task(self, title: str, total: int, unit: str = "images"):
        """A piece of work of `total` units; yields `advance(n, text)`. Off a terminal nothing is shown but `say`."""
        if not self.live:
            yield lambda n, text="": _stop_if_interrupted()
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Bar(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True), transient=True) as bar:
            self._bar = bar
            task, start, done = bar.add_task(title, total=total, text=""), time.monotonic(), 0

            def advance(n: int, text: str = "") -> None:
                nonlocal done
                _stop_if_interrupted()
                done += n
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(task, advance=n, text=f"{text} {rate:,.0f} {unit}/s")

            try:
                yield advance
            finally:
                self._bar = None
