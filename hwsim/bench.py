"""`hwsim bench`: a training step of the published loop, of the folded plain-torch path and of the fast backend.

Time: all variants in one process, one step of each in turn, after one step each to warm up; minimum, median and ratios
to the loop. Memory: a process for each variant, peak resident size after two steps, minus what the imports took. All
variants get the same weights, images and spikes, quantized weights are not part of it, and the optimizer is SGD with
momentum.
"""

import json
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

VARIANTS = ("loop", "folded", "fused")
"""loop: time outside, layers inside. folded: layer by layer in plain torch. fused: with the backend of `lif.choose`."""
THREADS = 2
COLUMNS = (
    "variant", "net", "width", "size_px", "steps", "batch", "threads", "samples", "min_s", "median_s", "speedup_min",
    "speedup_median", "peak_mb_above_imports", "memory_ratio", "torch", "commit",
)  # fmt: skip


def training_step(variant: str, *, net: str, width: float, size: int, steps: int, batch: int) -> Callable[[], float]:
    """A function that does one training step of a variant and returns its seconds."""
    generator = torch.Generator().manual_seed(0)
    model = build(net, width=width, channels=3, size=(size, size), classes=10, steps=steps, generator=generator)
    x = torch.randn(batch, 3, size, size, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    run = StepwiseVgg(model) if variant == "loop" else model.run
    owner = run if variant == "loop" else model
    optimizer = torch.optim.SGD(owner.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step() -> float:
        lif.forced = "reference" if variant == "folded" else "auto"
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


def peak_mb(variant: str, settings: dict) -> float:
    """Peak resident megabytes of two training steps, in a fresh process, above what imports and kernels take."""
    code = f"from hwsim.bench import _peak; _peak({variant!r}, {json.dumps(settings)})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _peak(variant: str, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    tiny = {**settings, "net": "vgg5", "width": 0.1, "size": 8, "steps": 2, "batch": 2}
    training_step(variant, **tiny)()  # what the libraries load on first use counts as imports
    before = _resident_mb()
    step = training_step(variant, **settings)
    step(), step()
    print(_resident_mb() - before)


def _resident_mb() -> float:
    """Peak resident size of this process. Not from getrusage on Linux: there a child starts with its parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bench(*, csv_file: Path | None, samples: int, **settings) -> str:
    """Measure every variant; returns the table as text and writes it as CSV where asked."""
    if settings["net"] not in PLANS:
        raise ConfigError([f"--net: there is no network '{settings['net']}'{nearest(settings['net'], PLANS)}"])
    torch.set_num_threads(THREADS)
    steps = {variant: training_step(variant, **settings) for variant in VARIANTS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(samples):
        for variant, step in steps.items():
            seconds[variant].append(step())
    del steps
    memory = {variant: peak_mb(variant, settings) for variant in VARIANTS}
    low, middle = ({v: f(s) for v, s in seconds.items()} for f in (min, statistics.median))
    common = {"net": settings["net"], "width": settings["width"], "size_px": settings["size"], "steps":
    settings["steps"],
              "batch": settings["batch"], "threads": THREADS, "samples": samples, "torch": versions()["torch"],
              "commit": commit() or ""}  # fmt: skip
    rows = [
        {
            "variant": v,
            "min_s": low[v],
            "median_s": middle[v],
            "speedup_min": low["loop"] / low[v],
            "speedup_median": middle["loop"] / middle[v],
            "peak_mb_above_imports": memory[v],
            "memory_ratio": memory[v] / memory["loop"],
            **common,
        }  # fmt: skip
        for v in VARIANTS
    ]
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    shown = ("variant", "min_s", "median_s", "speedup_min", "speedup_median", "peak_mb_above_imports", "memory_ratio")
    what = f"{settings['net']} x{settings['width']:g}, {settings['size']} px, T = {settings['steps']}"
    head = f"one training step of {what}, batch {settings['batch']}, {THREADS} threads"
    return f"{head}\n{aligned(rows, shown)}"
