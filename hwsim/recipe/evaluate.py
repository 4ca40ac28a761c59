"""Accuracy over chips: each chip is drawn once and held for the whole test set; mean, spread and 95 % interval.

Chips are drawn by CPU generators, so the same seed gives the same chips on CPU and CUDA, to every network of one shape
and at every scale: differences between networks are measured chip by chip. The spike coding is drawn anew for every
chip, so the interval holds the coding's scatter too, and a scale of 0 shows that scatter alone; or once for all chips
(`spikes: shared`), and differences between chips are those of their cells. Then, and where no spikes are drawn, many
chips share a pass (`together.py`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.data.image import ImageData, Split, batches, normalize
from hwsim.device.store import clear, draw
from hwsim.recipe.adapt import adapted
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Evaluate
from hwsim.recipe.together import groups, rows_together, sees_its_own


class Interval(NamedTuple):
    """A mean over n independent values with its 95 % confidence interval (Student's t)."""

    n: int
    mean: float
    std: float
    low: float
    high: float
    minimum: float


def interval(values: list[float]) -> Interval:
    """Mean, standard deviation (n - 1), and mean -+ t_{0.975, n-1} std / sqrt(n) of the values.

    A single value has no spread: std, low and high are nan.

    >>> [round(v, 4) for v in interval([0.9, 0.8, 1.0])[1:5]]
    [0.9, 0.1, 0.6516, 1.1484]
    """
    from scipy.stats import t

    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Interval(1, mean, math.nan, math.nan, math.nan, mean)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Interval(n, mean, std, mean - half, mean + half, min(values))


class Tested(NamedTuple):
    """What one pass over a split gave."""

    accuracy: float
    loss: float
    images: int


@torch.no_grad()
def measure(
    net,
    split: Split,
    data: ImageData,
    coding: torch.Generator,
    *,
    batch_size: int,
    drop_last: bool = False,
    before_batch: Callable[[], None] | None = None,
) -> Tested:
    """One pass in evaluation mode. Accuracy is over images, or with drop_last over the complete batches."""
    net.eval()
    device = next(net.parameters()).device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    criterion = getattr(net, "criterion", F.cross_entropy)  # that of the training
    for images, labels in batches(split, batch_size, None, drop_last):
        if before_batch is not None:
            before_batch()
        x, y = normalize(images.to(device), data.mean, data.std), labels.to(device)
        logits, _ = net(x, coding)
        correct += (logits.argmax(1) == y).sum()
        loss += criterion(logits, y, reduction="sum")
        seen += len(y)
    return Tested(int(correct) / seen, float(loss) / seen, seen)


class Ensemble(nn.Module):
    """Networks on one and the same chip, seeing the same spikes; its logits are their mean."""

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x_BCHW: torch.Tensor, generator: torch.Generator | None = None):
        """(mean logits [B, K], no trace)."""
        x_TBCHW = self.nets[0].encode(x_BCHW, generator)
        return torch.stack([net.run(x_TBCHW)[0] for net in self.nets]).mean(0), {}


def over_chips(
    networks_on: Callable[[int], list[nn.Module]],
    chips: Iterable[int],
    data: ImageData,
    stage: Evaluate,
    seed: int,
    done: Callable[[int], None],
) -> Iterator[dict]:
    """Test accuracy on each chip and with each of the stage's numbers of adaptation batches; one row each.

    networks_on: chip → the networks that run there, stores placed; of several the mean of the logits counts. Chips that
    see the same input (shared spikes, or a coding that draws none) share what does not depend on the chip. Where
    nothing else differs between them either, one pass speaks for all.
    """
    for alone, begun in groupby(groups(networks_on, chips, stage), lambda g: any(sees_its_own(stage, n) for n in g[0])):
        if alone:
            for nets, (chip,) in begun:
                yield from _one_chip(nets, chip, data, stage, seed, done)
        else:
            yield from rows_together(begun, data, stage, seed, done)


def _one_chip(
    nets: list[nn.Module], chip: int, data: ImageData, stage: Evaluate, seed: int, done: Callable[[int], None]
) -> Iterator[dict]:
    """The rows of a chip that has spikes of its own."""
    net = nets[0] if len(nets) == 1 else Ensemble(nets)
    device = next(net.parameters()).device
    for number in stage.adapt:
        cells = [generator(seed, "chips", chip) for _ in nets]

        def redraw(cells=cells):
            for one, g in zip(nets, cells, strict=True):
                draw(one, g)

        redraw()
        with ExitStack() as stack:
            for one in nets if number else []:
                order = generator(seed, "batches", "adapt", chip)
                spikes = generator(seed, "batches", "adapt coding", chip, device=device)
                stack.enter_context(
                    adapted(one, data, number, batch_size=stage.adapt_batch_size, order=order, coding=spikes)
                )
            coding = generator(seed, "batches", "test", chip, device=device)
            tested = measure(
                net, data.test, data, coding,
                batch_size=stage.batch_size, drop_last=stage.drop_last,
                before_batch=redraw if stage.redraw == "batch" else None,
            )  # fmt: skip
        for one in nets:
            clear(one)
        done(tested.images)
        yield {"chip": chip, "adapt_batches": number, "accuracy": tested.accuracy, "images": tested.images}
