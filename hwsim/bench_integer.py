"""`hwsim bench --integer`: an epoch of the pattern network and a training step of DECOLLE, against the published way.

published: what the released scripts do, a time step after the other in Python on float32 values that emulate the
integers (`pattern_stepwise.Values`, `decolle_stepwise.run_published`; without the recording of autograd, which makes it
faster than the scripts). The others are hwsim's backends, which give the same codes. All variants of a network stand in
one process for each allocator and take turns, after one turn each to warm up; peak memory is measured in a process
each. A DECOLLE step is one time step of one batch, all layers forward and learning, averaged over a window's steps
behind the burn-in. Sizes are those of the papers: 700-400-250 at 2-8-8-8 bits and T = 250; convolutions of 64, 128 and
128 channels on 2 x 32 x 32 events.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hwsim.bench import ALLOCATORS, THREADS, _in_process, _resident_mb
from hwsim.data.pattern import load_pattern
from hwsim.network.decolle import build
from hwsim.network.decolle_stepwise import run_published
from hwsim.network.pattern import PatternNet
from hwsim.network.pattern_rule import PatternRule
from hwsim.recipe.manifest import commit, versions
from hwsim.report.table import aligned, csv_bytes

BATCH, STEPS, BURN_IN, DENSITY = 8, 24, 3, 0.05
"""Of the DECOLLE step: samples a batch, time steps of a window, of them without learning, and events a pixel."""
PATTERN = {"published": "float", "torch": "integer-torch", "kernels": "integer"}
DECOLLE = {"published": "published", "torch": "float", "kernels": "fused"}
"""Variant → backend."""
COLUMNS = (
    "network", "variant", "allocator", "backend", "unit", "min_s", "median_s", "speedup_min", "speedup_median",
    "peak_mb_above_imports", "memory_ratio", "samples", "threads", "torch", "commit",
)  # fmt: skip

Timed = Callable[[], float]


def pattern_epoch(backend: str, hidden: int = 400) -> Timed:
    """A function that trains one epoch and returns its seconds."""
    rule = PatternRule(inputs=700, hidden=hidden, outputs=250, steps=250, wb=2, ab=8, gb=8, eb=8, rb=16)
    data = load_pattern(
        "smiley", steps=250, inputs=700, outputs=250, input_generator=torch.Generator().manual_seed(1),
        target_generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    net = PatternNet(rule, generator=torch.Generator().manual_seed(0), backend=backend)
    x, y = data.input_TI.to(torch.uint8).contiguous(), data.target_TO.to(torch.uint8).contiguous()
    draws = torch.Generator().manual_seed(3)

    def epoch() -> float:
        uniforms = net.draw(draws)
        start = time.perf_counter()
        net.step(x, y, uniforms)
        return time.perf_counter() - start

    return epoch


def decolle_step(backend: str, channels: tuple[int, ...] = (64, 128, 128)) -> Timed:
    """A function that learns from one window and returns its seconds a learning step."""
    net = build(torch.Generator().manual_seed(0), channels=channels, burn_in=BURN_IN, weight_mult=1e-3)
    given = torch.Generator().manual_seed(1)
    rule = net.rule
    x = (torch.rand(STEPS, BATCH, rule.inputs, *rule.image, generator=given) < DENSITY).to(torch.uint8)
    y = torch.randint(rule.classes, (BATCH,), generator=given)
    draws = torch.Generator().manual_seed(2)

    def step() -> float:
        start = time.perf_counter()
        if backend == "published":
            run_published(net, x, y, generator=draws)
        else:
            net.run(x, y, learn=True, generator=draws, backend=backend)
        return (time.perf_counter() - start) / (STEPS - BURN_IN - 1)

    return step


NETWORKS = {
    "pattern": ("epoch", pattern_epoch, PATTERN, 8),
    "decolle": ("learning step", decolle_step, DECOLLE, (8, 8, 8)),
}
"""Network → unit, what makes it, its variants, and a small size of it."""


def bench(*, csv_file: Path | None, samples: int) -> str:
    """Measure every variant with every allocator; returns the table as text and writes it as CSV where asked."""
    rows: list[dict] = []
    for network, (_, _, backends, _) in NETWORKS.items():
        seconds, peaks = {}, {}
        for allocator in ALLOCATORS:
            found = _in_process(f"_print_seconds({network!r}, {samples})", allocator, "bench_integer")
            for variant, values in found.items():
                seconds[variant, allocator] = values
                peak = f"_print_peak({network!r}, {backends[variant]!r})"
                peaks[variant, allocator] = _in_process(peak, allocator, "bench_integer")
        rows += _rows(network, seconds, peaks)
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    shown = [c for c in COLUMNS if c not in ("samples", "threads", "torch", "commit")]
    return f"integer networks at the papers' sizes, {THREADS} threads\n{aligned(rows, shown)}"


def timed(made: dict[str, Timed], samples: int) -> dict[str, list[float]]:
    """Seconds of each variant, which take turns after one turn each to warm up."""
    for one in made.values():
        one()
    seconds: dict[str, list[float]] = {variant: [] for variant in made}
    for _ in range(samples):
        for variant, one in made.items():
            seconds[variant].append(one())
    return seconds


def _print_seconds(network: str, samples: int) -> None:
    torch.set_num_threads(THREADS)
    _, make, backends, _ = NETWORKS[network]
    print(json.dumps(timed({variant: make(backend) for variant, backend in backends.items()}, samples)))


def _print_peak(network: str, backend: str) -> None:
    torch.set_num_threads(THREADS)
    _, make, _, small = NETWORKS[network]
    make(backend, small)()  # what the libraries load on first use counts as imports
    before = _resident_mb()
    step = make(backend)
    step(), step()
    print(json.dumps(_resident_mb() - before))


def _rows(network: str, seconds: dict[tuple[str, str], list[float]], peaks: dict[tuple[str, str], float]) -> list[dict]:
    unit, _, backends, _ = NETWORKS[network]
    low, middle = ({v: f(s) for v, s in seconds.items()} for f in (min, statistics.median))
    first = ("published", ALLOCATORS[0])
    return [
        {
            "network": network, "variant": variant, "allocator": allocator, "backend": backends[variant], "unit": unit,
            "min_s": low[v], "median_s": middle[v], "speedup_min": low[first] / low[v],
            "speedup_median": middle[first] / middle[v], "peak_mb_above_imports": peaks[v],
            "memory_ratio": peaks[v] / peaks[first] if peaks[first] else "", "samples": len(seconds[v]),
            "threads": THREADS, "torch": versions()["torch"], "commit": commit() or "",
        }
        for variant in backends
        for allocator in ALLOCATORS
        for v in [(variant, allocator)]
    ]  # fmt: skip
