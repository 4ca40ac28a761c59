"""`hwsim bench --bitnet`: what a training step of BITnet needs, by surrogate and memory, against plain autograd.

The yardstick is `bitnet_stepwise`, time outside and one autograd graph, at `YARDSTICK` steps: more steps are to fit
into what it needs for these. A process for each variant and allocator: after a tiny training step, its seconds and its
peak resident size minus that of before. There glibc returns freed blocks at once, so that the peak is what is held at
one time and not what malloc keeps for later. gradient_error: largest difference to plain autograd of as many steps on
the first two images, over all parameters, relative to the largest number of each gradient.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from hwsim.bench import ALLOCATORS, THREADS, _in_process, _resident_mb
from hwsim.config import ConfigError, nearest
from hwsim.network.bitnet import PLANS, Bitnet, build
from hwsim.network.bitnet_stepwise import stepwise_counts
from hwsim.recipe.manifest import commit, versions
from hwsim.report.table import aligned, csv_bytes

AUTOGRAD = "autograd"
"""The memory of the yardstick."""
YARDSTICK = 4
"""Its steps."""
WAYS = (("S2", "two-pass"), ("S1", "bits"), ("S3", "bits"), ("S1", "segments"), ("S3", "segments"))
"""(surrogate, memory) that are measured at T steps."""
DEFAULTS = {"net": "bitnet6", "width": 0.125, "size": 32, "steps": 200, "batch": 32}
COLUMNS = (
    "surrogate", "memory", "allocator", "steps", "segment_steps", "seconds", "peak_mb_above_imports", "memory_ratio",
    "gradient_error", "net", "width", "size_px", "batch", "threads", "torch", "commit",
)  # fmt: skip


def variants(steps: int) -> list[tuple[str, str, int]]:
    """(surrogate, memory, T) of every row; the yardstick first, and again at twice its steps, to show that it grows."""
    yardsticks = [("S2", AUTOGRAD, YARDSTICK), ("S2", AUTOGRAD, 2 * YARDSTICK)]
    return [*yardsticks, ("S2", "two-pass", YARDSTICK), *((s, m, steps) for s, m in WAYS)]


def network(surrogate: str, memory: str, steps: int, *, net: str, width: float, size: int, batch: int) -> Bitnet:
    """The same network, with the same weights, for every variant."""
    return build(
        net, width=width, channels=3, size=(size, size), classes=10, steps=steps, surrogate=surrogate,
        memory="full" if memory == AUTOGRAD else memory, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def gradients(net: Bitnet, memory: str, images: int, size: int) -> dict[str, torch.Tensor]:
    """Every parameter's gradient after one training step on so many random images."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, size, size, generator=generator)
    y = torch.randint(10, (images,), generator=generator)
    if memory == AUTOGRAD:
        net.criterion(stepwise_counts(net, x)[0] / net.steps, y).backward()
    else:
        for loss in net.losses(x, y):
            loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}


def _print_step(surrogate: str, memory: str, steps: int, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    tiny = {**settings, "width": 0.1, "size": 8, "batch": 2}
    gradients(network(surrogate, memory, 2, **tiny), memory, 2, 8)  # what libraries load on first use is no part of it
    before, start = _resident_mb(), time.perf_counter()
    gradients(network(surrogate, memory, steps, **settings), memory, settings["batch"], settings["size"])
    print(json.dumps([time.perf_counter() - start, _resident_mb() - before]))


def _print_error(surrogate: str, memory: str, steps: int, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    wanted, found = (
        gradients(network(surrogate, m, steps, **settings), m, 2, settings["size"]) for m in (AUTOGRAD, memory)
    )
    errors = [float((found[name] - w).abs().max() / w.abs().max().clamp(min=1e-30)) for name, w in wanted.items()]
    print(json.dumps(max(errors)))


def _measured(call: str, allocator: str = ALLOCATORS[0]) -> Any:
    return _in_process(call, allocator, "bench_bitnet", MALLOC_MMAP_THRESHOLD_="65536")


def bench(*, csv_file: Path | None, **given: Any) -> str:
    """Measure every variant; returns the table as text and writes it as CSV where asked.

    given: net, width, size, steps, batch; None is the one in `DEFAULTS`. Raises `ConfigError` for another network.
    """
    settings = {k: given.get(k) if given.get(k) is not None else v for k, v in DEFAULTS.items()}
    if settings["net"] not in PLANS:
        raise ConfigError([
            f"--net: --bitnet measures {' or '.join(PLANS)}, found '{settings['net']}'"
            f"{nearest(settings['net'], PLANS)}"
        ])  # fmt: skip
    longest = settings.pop("steps")
    network("S2", "full", longest, **settings)  # an image that cannot be pooled is refused here
    rows = []
    for surrogate, memory, steps in variants(longest):
        of = f"{surrogate!r}, {memory!r}, {steps}, {settings!r}"
        error = 0.0 if memory == AUTOGRAD else _measured(f"_print_error({of})")
        for allocator in ALLOCATORS:
            seconds, peak = _measured(f"_print_step({of})", allocator)
            rows.append({
                "surrogate": surrogate, "memory": memory, "allocator": allocator, "steps": steps,
                "segment_steps": network(surrogate, memory, steps, **settings).segment, "seconds": seconds,
                "peak_mb_above_imports": peak, "memory_ratio": peak / rows[0]["peak_mb_above_imports"] if rows else 1.0,
                "gradient_error": error, "net": settings["net"], "width": settings["width"],
                "size_px": settings["size"], "batch": settings["batch"], "threads": THREADS,
                "torch": versions()["torch"], "commit": commit() or "",
            })  # fmt: skip
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    what = f"{settings['net']} x{settings['width']:g}, {settings['size']} px, batch {settings['batch']}"
    return f"one training step of {what}, {THREADS} threads\n{aligned(rows, COLUMNS[:9])}"
