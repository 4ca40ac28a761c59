"""Several processes that run one recipe together, as torchrun starts them: who writes, who decides, what each takes.

    torchrun --nproc-per-node N -m hwsim recipe vat …

Training is data parallel: all processes (ranks) draw the same batches, augmentation, spike coding and chips from the
same generators, each runs its share of the images, and DistributedDataParallel averages the gradients; the result is
that of one process but for the order of its sums. Chips are measured by one rank each. Rank 0 alone decides what is
reused, writes and speaks; what it found reaches the others by `first`. Tensors travel by nccl on CUDA, else by gloo.

No rank waits for one that has failed: the first to fail says so in the store that all share, every rank looks there
while it works, and all end with its exit code; it alone prints.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hwsim.config import RunError
from hwsim.network.layer import BNTT
from hwsim.network.share import Share

Made = TypeVar("Made")

PATIENCE = timedelta(days=7)
"""How long a rank waits for the others: rank 0 may count, plot or wait for another run meanwhile."""
LOOK_SECONDS = 0.2
"""How often a rank looks whether another has failed."""
_SYNCS_BUFFERS = next(
    n for n in ("forward_sync_buffers", "broadcast_buffers") if n in signature(DistributedDataParallel).parameters
)
"""What torch calls the sending of running statistics before every batch; 2.11 has the second name alone."""
GRACE_SECONDS = 1.0
"""What a rank is left to find the same mistake and end by itself."""


class Ranks:
    """This process, of rank `rank`, among `count` that run a recipe; `local` numbers those of this machine."""

    def __init__(self, rank: int = 0, count: int = 1, local: int = 0, store: dist.Store | None = None):
        self.rank, self.count, self.local = rank, count, local
        self._store = store
        self._is_alone = count == 1
        self._leaving, self._departure = threading.Event(), threading.Lock()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0: the one that writes and speaks."""
        return self.rank == 0

    def first(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes, in every rank; the others wait for it. Within `make` rank 0 is on its own."""
        if self._is_alone:
            return make()
        held: list = [None]
        if self.is_first:
            self._is_alone = True
            try:
                held = [make()]
            finally:
                self._is_alone = False
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def one_fetches(self, make: Callable[[], Made]) -> Made:
        """What every rank makes for itself, the first of each machine before the others: they find its files."""
        if self.count == 1:
            return make()
        if self.local:
            self.gather([])
        made = make()
        if not self.local:
            self.gather([])
        return made

    def share(self, items: Sequence[Made]) -> Sequence[Made]:
        """Every count-th of some items, which this rank takes."""
        return items if self._is_alone else items[self.rank :: self.count]

    def gather(self, mine: list[Made]) -> list[Made]:
        """The lists of all ranks, one behind the other, in every rank."""
        if self._is_alone:
            return mine
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, mine)
        return [item for part in parts for item in part]

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of a number that every rank has."""
        if self._is_alone:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    @property
    def of_a_batch(self) -> Share:
        """This rank's share of a batch, as a network understands it."""
        return Share(self.rank, self.count, lambda x: _Gathered.apply(x, self.rank, self.count))

    def losses(self, net: nn.Module, statistics: str) -> Callable:
        """`net.losses` of a whole batch: each rank's is that of its share, and its backward averages the gradients.

        statistics: synchronised lets BNTT normalize with those of the whole batch; local with those of the share.
        """
        if self.count == 1:
            return net.losses
        share = self.of_a_batch
        for layer in _normalizations(net):
            layer.share = share if statistics == "synchronised" else None
        parallel = DistributedDataParallel(_Losses(net, share), **{_SYNCS_BUFFERS: False})
        return lambda x, y, coding: iter([parallel(x, y, coding)])

    @torch.no_grad()
    def average_statistics(self, net: nn.Module) -> None:
        """Running statistics become their means over the ranks; those that were synchronised are equal already.

        Local ones all estimate the same: each mean and (unbiased) variance is that of a share, which is a sample of
        the data as the whole batch is.
        """
        for layer in _normalizations(net) if self.count > 1 else ():
            if layer.share is None:
                for value in (layer.running_mean, layer.running_var):
                    value.copy_(self.mean(value.double()))

    def tells(self, code: int) -> bool:
        """Whether this rank says what went wrong: it is the first to end with an error. The others then end too."""
        if self._store is None:
            return True
        try:
            if self._store.add("failed", 1) > 1:
                return False
            self._store.set("code", str(code))
        except RuntimeError:  # the store has gone, with the process that held it
            pass
        return True

    def leave(self, code: int) -> int:
        """End together: the exit code, after an error that of the first to fail, once all ranks have got there."""
        self._leaving.set()
        if self._store is None:
            return code
        if code == 0:
            dist.destroy_process_group()
        with suppress(RuntimeError):  # the store has gone
            code = code and int(self._store.get("code"))
        self._depart()
        return code

    def _depart(self) -> None:
        """Wait until all ranks end; rank 0, which may hold the store, is the last to let go of it."""
        if not self._departure.acquire(timeout=30 * GRACE_SECONDS):
            return
        with suppress(RuntimeError):
            self._await("ready")
            if self.is_first:
                self._await("gone")
            else:
                self._store.add("gone", 1)

    def _await(self, event: str) -> None:
        """Count this rank, and wait for the others, but no longer than for one that was killed."""
        self._store.add(event, 1)
        latest = time.monotonic() + 10 * GRACE_SECONDS
        while self._store.add(event, 0) < self.count and time.monotonic() < latest:
            time.sleep(LOOK_SECONDS / 4)

    def watch(self) -> None:
        """End this process when another has failed, whatever it waits for."""
        try:
            while not self._store.check(["code"]):
                if self._leaving.wait(LOOK_SECONDS):
                    return
            if self._leaving.wait(GRACE_SECONDS):
                return
            code = int(self._store.get("code"))
        except RuntimeError:  # the store has gone: who waits for the process that held it is told so
            return
        self._depart()
        os._exit(code)


class _Losses(nn.Module):
    """The one loss of a batch as a module's output, as DistributedDataParallel wants it."""

    def __init__(self, net: nn.Module, share: Share):
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: torch.Tensor, y: torch.Tensor, coding: torch.Generator) -> torch.Tensor:
        (loss,) = self.net.losses(x, y, coding, self.share)
        return loss


class _Gathered(torch.autograd.Function):
    """`Share.gather`: stacks the tensors of all ranks; a rank's own gets the sum of their gradients."""

    @staticmethod
    def forward(ctx, x, rank, count):
        ctx.rank = rank
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count)]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.rank], None, None


def _normalizations(net: nn.Module) -> list[BNTT]:
    return [layer for layer in net.modules() if isinstance(layer, BNTT)]


ALONE = Ranks()
"""One process on its own."""
_here = ALONE
LOST = "another process of this run has ended; finished epochs are kept, the same command goes on from there"


def joined() -> Ranks:
    """The ranks that this process has joined; `ALONE` where there are no others."""
    return _here


def join() -> Ranks:
    """Meet the other processes, as torchrun's environment names them. Raises `RunError` where they cannot be met."""
    global _here
    address = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, count = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as e:
        raise RunError(f"the other processes cannot be met at {address}: {str(e).splitlines()[0]}") from None
    _here = Ranks(rank, count, int(os.environ.get("LOCAL_RANK", rank)), dist.PrefixStore("hwsim", store))
    threading.Thread(target=_here.watch, daemon=True).start()
    return _here


def end_together(run: Callable[[], tuple[int, Callable[[], None]]]) -> int:
    """Join the other processes and run a command with them; returns the exit code, the same in all.

    run: the exit code of the command, and what says what went wrong. The first rank that fails says it, and no other.
    """
    try:
        ranks = join()
    except RunError as e:
        print(e, file=sys.stderr)
        return 2
    if not ranks.is_first:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        if sys.argv[1:2] != ["recipe"]:
            raise RunError(f"hwsim {' '.join(sys.argv[1:2])}: works in one process; torchrun is for hwsim recipe")
        code, say = run()
    except RunError as e:
        code, say = 2, partial(print, e, file=sys.stderr)
    except Exception as e:
        code, say = 1, partial(traceback.print_exception, e)
        if isinstance(e, dist.DistError) or "gloo" in str(e).lower():
            code, say = 2, partial(print, LOST, file=sys.stderr)
    if code and ranks.tells(code):
        say()
    return ranks.leave(code)
