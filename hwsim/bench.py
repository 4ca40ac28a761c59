"""`hwsim bench`: a training step of the published loop, of the folded plain-torch path and of the fast backend.

Each with the allocator's defaults and with huge pages (torch's THP_MEM_ALLOC_ENABLE), as every recipe runs. Time: one
process for each allocator, in it one step of each variant in turn, after one step each to warm up; minimum, median, and
ratios to the loop with the default allocator. Memory: a process for each, peak resident size after two steps, minus
what the imports took. All get the same weights, images and spikes; weights are not quantized; SGD with momentum.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from hwsim.config import ConfigError, nearest
from hwsim.network import lif
from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import PLANS, build
from hwsim.recipe.manifest import commit, versions
from hwsim.report.table import aligned, csv_bytes

WAYS = ("loop", "folded", "fused")
"""loop: time outside, layers inside. folded: layer by layer in plain torch. fused: with the backend of `lif.choose`."""
ALLOCATORS = ("default", "huge")
THREADS = 2
COLUMNS = (
    "variant", "allocator", "net", "width", "size_px", "steps", "batch", "threads", "samples", "min_s", "median_s",
    "speedup_min", "speedup_median", "peak_mb_above_imports", "memory_ratio", "torch", "commit",
)  # fmt: skip


def training_step(how: str, *, net: str, width: float, size: int, steps: int, batch: int) -> Callable[[], float]:
    """A function that does one training step in one of the `WAYS` and returns its seconds."""
    generator = torch.Generator().manual_seed(0)
    model = build(net, width=width, channels=3, size=(size, size), classes=10, steps=steps, generator=generator)
    x = torch.randn(batch, 3, size, size, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    run = StepwiseVgg(model) if how == "loop" else model.run
    owner = run if how == "loop" else model
    optimizer = torch.optim.SGD(owner.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step() -> float:
        lif.forced = "reference" if how == "folded" else "auto"
        try:
            start = time.perf_counter()
            loss = F.cross_entropy(run(model.encode(x, generator))[0], y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return time.perf_counter() - start
        finally:
            lif.forced = "auto"

    return step


def _in_process(call: str, allocator: str) -> dict[str, list[float]] | float:
    """What a function of this file prints as JSON in a fresh process with the given allocator."""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1" if allocator == "huge" else "0"}
    command = [sys.executable, "-c", f"from hwsim import bench; bench.{call}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def _print_seconds(samples: int, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    steps = {how: training_step(how, **settings) for how in WAYS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {how: [] for how in WAYS}
    for _ in range(samples):
        for how, step in steps.items():
            seconds[how].append(step())
    print(json.dumps(seconds))


def _print_peak(how: str, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    tiny = {**settings, "net": "vgg5", "width": 0.1, "size": 8, "steps": 2, "batch": 2}
    training_step(how, **tiny)()  # what the libraries load on first use counts as imports
    before = _resident_mb()
    step = training_step(how, **settings)
    step(), step()
    print(json.dumps(_resident_mb() - before))


def _resident_mb() -> float:
    """Peak resident size of this process. Not from getrusage on Linux: there a child starts with its parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bench(*, csv_file: Path | None, samples: int, **settings) -> str:
    """Measure every way with every allocator; returns the table as text and writes it as CSV where asked."""
    if settings["net"] not in PLANS:
        raise ConfigError([f"--net: there is no network '{settings['net']}'{nearest(settings['net'], PLANS)}"])
    seconds, memory = {}, {}
    for allocator in ALLOCATORS:
        for how, values in _in_process(f"_print_seconds({samples}, {settings!r})", allocator).items():
            seconds[how, allocator] = values
            memory[how, allocator] = _in_process(f"_print_peak({how!r}, {settings!r})", allocator)
    low, middle = ({v: f(s) for v, s in seconds.items()} for f in (min, statistics.median))
    loop = (WAYS[0], ALLOCATORS[0])
    common = {
        "net": settings["net"], "width": settings["width"], "size_px": settings["size"], "steps": settings["steps"],
        "batch": settings["batch"], "threads": THREADS, "samples": samples, "torch": versions()["torch"],
        "commit": commit() or "",
    }  # fmt: skip
    rows = [
        {
            "variant": how,
            "allocator": allocator,
            "min_s": low[v],
            "median_s": middle[v],
            "speedup_min": low[loop] / low[v],
            "speedup_median": middle[loop] / middle[v],
            "peak_mb_above_imports": memory[v],
            "memory_ratio": memory[v] / memory[loop],
            **common,
        }  # fmt: skip
        for how in WAYS
        for allocator in ALLOCATORS
        for v in [(how, allocator)]
    ]
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    shown = [c for c in COLUMNS if c not in common]
    what = f"{settings['net']} x{settings['width']:g}, {settings['size']} px, T = {settings['steps']}"
    return f"one training step of {what}, batch {settings['batch']}, {THREADS} threads\n{aligned(rows, shown)}"
