"""Many chips on one pass over the test set: batches outside, chips inside, where all chips see the same input.

Once a batch: the images, their coding, and the leading layers that are the same on every chip (without spread, and
behind the first current without adaptation). The rest runs chip by chip. A group of chips is held at a time, at most
`AT_ONCE` and `CELLS_BYTES` of cells; the next group begins the pass again with the same generator of spikes. So neither
memory nor any row depends on how many chips there are, or on which.

On CUDA the CPU draws a chip's normals while the GPU works on the chips before it, and a group's results are asked for
when the next group has been begun. The normals stay those of CPU generators, so that both devices have the same chips:
a counter-based generator in integers that are the same on both was measured at 5 times the time on the CPU.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import is_

import torch
from torch import nn

from hwsim.data.image import ImageData, batches, normalize, sent
from hwsim.device.chip import Part, chip_bytes, held, put, varies
from hwsim.device.store import clear, draw
from hwsim.network.layer import BNTT
from hwsim.recipe.adapt import adapted
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Evaluate

AT_ONCE = 25
"""Chips that share what is computed once: more would save no more than 4 % of that."""
CELLS_BYTES = 2**27
"""Bytes of cells that are held at a time, if that is a chip or more."""

Networks = list[nn.Module]


def sees_its_own(stage: Evaluate, net: nn.Module) -> bool:
    """Whether each chip has spikes of its own, so that chips share nothing."""
    return stage.spikes == "per-chip" and getattr(net, "coding", "poisson") == "poisson"


def groups(
    networks_on: Callable[[int], Networks], chips: Iterable[int], stage: Evaluate
) -> Iterator[tuple[Networks, list[int]]]:
    """(networks, chips that run on them) in order: as many at a time as see the same input and may be held."""
    nets: Networks = []
    group: list[int] = []
    for chip in chips:
        wanted = networks_on(chip)
        if group and not (len(wanted) == len(nets) and all(map(is_, wanted, nets))):
            yield nets, group
            group = []
        nets = wanted
        group.append(chip)
        if len(group) == _most(nets, stage):
            yield nets, group
            group = []
    if group:
        yield nets, group


def _most(nets: Networks, stage: Evaluate) -> int:
    if any(sees_its_own(stage, net) for net in nets):
        return 1
    cells = sum(map(chip_bytes, nets))
    if not cells and not max(stage.adapt):
        return sys.maxsize  # all chips are alike, and none is held
    return max(1, min(AT_ONCE, CELLS_BYTES // max(cells, 1)))


def rows_together(
    begun: Iterable[tuple[Networks, list[int]]],
    data: ImageData,
    stage: Evaluate,
    seed: int,
    done: Callable[[int], None],
) -> Iterator[dict]:
    """A row for each chip and number of adaptation batches of `groups` whose chips see the same input."""
    waiting: list = []
    for nets, chips in begun:
        passes = [one_pass(nets, chips, number, data, stage, seed, done) for number in stage.adapt]
        yield from _rows(*waiting)
        waiting = [chips, stage.adapt, passes]
    yield from _rows(*waiting)


def _rows(chips: Iterable[int] = (), adapt: Iterable[int] = (), passes: Iterable = ()) -> Iterator[dict]:
    counted = [(number, correct.tolist(), images) for number, (correct, images) in zip(adapt, passes, strict=True)]
    for i, chip in enumerate(chips):
        for number, correct, images in counted:
            yield {"chip": chip, "adapt_batches": number, "accuracy": correct[i] / images, "images": images}


@torch.no_grad()
def one_pass(
    nets: Networks,
    chips: list[int],
    number: int,
    data: ImageData,
    stage: Evaluate,
    seed: int,
    done: Callable[[int], None],
) -> tuple[torch.Tensor, int]:
    """(right answers of each chip, int64 on the network's device, images): nothing here waits for that device.

    nets: of several the mean of the logits counts. number: batches that each chip's statistics are adapted by.
    done: told the images that a chip has answered.
    """
    device = next(nets[0].parameters()).device
    fixed = {m for net in nets for m in net.modules() if not varies(m) and not (number and isinstance(m, BNTT))}
    alike = all(m in fixed for net in nets for m in net.modules())
    answering = chips[:1] if alike else chips
    group = _Group(nets, number, data, stage, seed)
    coding = generator(seed, "batches", "test", _who(stage, chips[0]), device=device)
    correct, seen = torch.zeros(len(answering), dtype=torch.int64, device=device), 0
    for images, labels in batches(data.test, stage.batch_size, None, stage.drop_last):
        x, y = normalize(images, data.mean, data.std, device), sent(labels, device)
        for net in nets:
            net.eval()
        x_TBCHW = nets[0].encode(x, coding)
        leads = [net.lead(x_TBCHW, fixed.__contains__) if hasattr(net, "lead") else x_TBCHW for net in nets]
        for i, chip in enumerate(answering):
            with group.on(chip):
                logits = [
                    net.follow(at) if hasattr(net, "lead") else net.run(at)[0]
                    for net, at in zip(nets, leads, strict=True)
                ]
            mean_BK = torch.stack(logits).mean(0) if len(logits) > 1 else logits[0]
            correct[i] += (mean_BK.argmax(1) == y).sum()
            done(len(y))
        seen += len(y)
    for net in nets:
        clear(net)
    done(seen * (len(chips) - len(answering)))
    return correct.expand(len(chips)) if alike else correct, seen


class _Group:
    """The chips of a group: drawn, and adapted to, when they are first met, and held; or drawn for every batch."""

    def __init__(self, nets: Networks, number: int, data: ImageData, stage: Evaluate, seed: int):
        self.nets, self.number, self.data, self.stage, self.seed = nets, number, data, stage, seed
        self.held: dict[int, list[Part]] = {}
        self.cells: dict[int, list[torch.Generator]] = {}

    @contextmanager
    def on(self, chip: int) -> Iterator[None]:
        """Within the block the networks are on the chip."""
        if self.stage.redraw == "batch":
            if chip not in self.cells:
                self._draw(chip)  # as chip by chip: the first draw is that of the chip, each batch has another
            self._draw(chip)
            yield
            return
        if chip not in self.held:
            self._draw(chip)
            self.held[chip] = [part for net in self.nets for part in held(net)]
            for net in self.nets:
                clear(net)
            if self.number:
                self.held[chip] += self._statistics(chip)
        with put(self.held[chip]):
            yield

    def _draw(self, chip: int) -> None:
        cells = self.cells.setdefault(chip, [generator(self.seed, "chips", chip) for _ in self.nets])
        for net, g in zip(self.nets, cells, strict=True):
            draw(net, g)

    def _statistics(self, chip: int) -> list[Part]:
        """Each network's statistics of training batches on the chip."""
        found: list[Part] = []
        who = _who(self.stage, chip)
        for net in self.nets:
            spikes = generator(self.seed, "batches", "adapt coding", who, device=next(net.parameters()).device)
            settings = {"batch_size": self.stage.adapt_batch_size, "coding": spikes}
            order = generator(self.seed, "batches", "adapt", who)
            with put(self.held[chip]), adapted(net, self.data, self.number, order=order, **settings):
                for layer in [m for m in net.modules() if isinstance(m, BNTT)]:
                    found += [(layer, n, getattr(layer, n).clone()) for n in ("running_mean", "running_var")]
        return found


def _who(stage: Evaluate, chip: int) -> int | str:
    """Whose spikes and adaptation batches a chip sees."""
    return "shared" if stage.spikes == "shared" else chip
