"""`hwsim bench --device cuda`: training steps a second on a GPU, each way with and without a CUDA graph.

    loop      time outside, layers inside, T batch norms a layer, as the published codes run it
    folded    layer by layer, in plain torch
    fused     layer by layer, neurons by the Triton kernels (`lif_cuda`), in float32, tf32 and bf16

The loop runs as torch does by default (tf32: convolutions in tf32, products in float32) and in float32 throughout. All
get the same weights, images and spikes, and the same optimizer, SGD with momentum in one kernel. One process, one way
after the other; a sample is `EACH` steps between two events on the GPU, of whose seconds a step the minimum and the
median are given; before them there are the warm-up steps of `step.py` and, with a graph, its capture. Memory is the
most that tensors held (torch.cuda.max_memory_allocated) from the first step on, weights and optimizer included.

tflop_s counts the multiplications and additions of convolutions and products, forward and for both gradients, alike
for all: what is left out because an input is 0, or the image needs no gradient, is left out for none but the latter.
"""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import ConfigError, nearest
from hwsim.network import lif
from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import PLANS, VggBntt, build
from hwsim.recipe.compute import compute_device
from hwsim.recipe.manifest import commit, versions
from hwsim.recipe.settings import Train
from hwsim.recipe.step import WARM_UP, Captured, CudaGraph, Eager, make_optimizer
from hwsim.report.table import aligned, csv_bytes

EACH = 10
"""Steps of a sample."""
COLUMNS = (
    "variant", "precision", "graph", "net", "width", "size_px", "steps", "batch", "samples", "min_s", "median_s",
    "images_per_s", "speedup_min", "peak_mb", "memory_ratio", "tflop_s", "note", "device", "torch", "commit",
)  # fmt: skip


class Way(NamedTuple):
    """One row of the table."""

    variant: str
    precision: str
    graph: bool


WAYS = tuple(
    Way(variant, precision, graph)
    for variant, precisions in (
        ("loop", ("tf32", "float32")), ("folded", ("float32",)), ("fused", ("float32", "tf32", "bf16")),
    )
    for precision in precisions
    for graph in (False, True)
)  # fmt: skip
"""The first is what the others are compared with."""


def flop(model: VggBntt, size: int, batch: int) -> int:
    """Floating-point operations of a training step: 2 for every weight and place that it meets, for three products.

    The gradient of the image is not computed: conv1 has two. fc2 meets the mean over time.

    >>> from hwsim.network.vgg_bntt import build
    >>> flop(build("mlp", width=0.01, channels=1, size=(2, 2), classes=3, steps=5), 2, 1)  # 4 x 8, then 8 x 3
    784
    """
    total, side, terms = 0, size, 2
    for conv, _, pool in model.blocks:
        total += terms * model.get_submodule(conv).weight.numel() * side * side * model.steps
        side, terms = {"": side, "A": side // 2, "G": 1}[pool], 3
    total += terms * model.fc1.weight.numel() * model.steps + 3 * model.fc2.weight.numel()
    return 2 * batch * total


def step_of(
    way: Way, device: torch.device, say: Callable[[str], None], *, net: str, width: float, size: int, steps: int,
    batch: int,
) -> tuple[Callable, VggBntt]:  # fmt: skip
    """(a function that does one training step in one of the ways and returns its loss on the device, the network)."""
    generator = torch.Generator().manual_seed(0)
    model = build(
        net, width=width, channels=3, size=(size, size), classes=10, steps=steps, precision=way.precision,
        generator=generator,
    ).to(device)  # fmt: skip
    x = torch.randn(batch, 3, size, size, generator=generator).to(device)
    y = torch.randint(10, (batch,), generator=generator).to(device)
    run = StepwiseVgg(model) if way.variant == "loop" else model.run
    owner = run if isinstance(run, nn.Module) else model

    def losses(x, y, coding):
        yield F.cross_entropy(run(model.encode(x, coding))[0], y)

    eager = Eager(owner, losses, make_optimizer(list(owner.parameters()), Train(lr=0.01)), "straight-through")
    learn = Captured(eager, say, CudaGraph()) if way.graph else eager
    coding = torch.Generator(device).manual_seed(1)
    cudnn = torch.backends.cudnn

    def step() -> torch.Tensor:
        lif.forced = "reference" if way.variant == "folded" else "auto"
        try:  # the loop knows no precision
            with cudnn.flags(enabled=cudnn.enabled, benchmark=True, allow_tf32=way.precision == "tf32"):
                return learn(x, y, coding)
        finally:
            lif.forced = "auto"

    return step, model


def _seconds(step: Callable) -> float:
    """Seconds of a step, by the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(EACH):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / EACH


def _forget_memory() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


def measured(way: Way, device: torch.device, samples: int, settings: dict) -> dict:
    """One row: times, memory and what stood in the way, if anything did."""
    notes: list[str] = []
    empty = dict.fromkeys(("min_s", "median_s", "images_per_s", "peak_mb", "tflop_s"), math.nan)
    _forget_memory()
    try:
        step, model = step_of(way, device, notes.append, **settings)
        for _ in range(WARM_UP + 2):
            step()
        if notes:
            return {**way._asdict(), **empty, "note": notes[0]}
        seconds = [_seconds(step) for _ in range(samples)]
    except torch.OutOfMemoryError:
        return {**way._asdict(), **empty, "note": "out of memory"}
    low, work = min(seconds), flop(model, settings["size"], settings["batch"])
    return {
        **way._asdict(), "min_s": low, "median_s": statistics.median(seconds),
        "images_per_s": settings["batch"] / low, "peak_mb": _peak_mb(), "tflop_s": work / low / 1e12, "note": "",
    }  # fmt: skip


def bench(*, csv_file: Path | None, samples: int, **settings) -> str:
    """Measure all `WAYS`; returns the table as text and writes it as CSV where asked.

    Raises `ConfigError` for an unknown network, and where there is no CUDA device or the kernels cannot run.
    """
    if settings["net"] not in PLANS:
        raise ConfigError([f"--net: there is no network '{settings['net']}'{nearest(settings['net'], PLANS)}"])
    device = compute_device("cuda")
    backend = lif.choose(device)
    if backend.name != "cuda":
        raise ConfigError([f"--device cuda: the fused kernels cannot run here: {backend.reason}"])
    rows = [measured(way, device, samples, settings) for way in WAYS]
    common = {
        "net": settings["net"], "width": settings["width"], "size_px": settings["size"], "steps": settings["steps"],
        "batch": settings["batch"], "samples": samples, "device": torch.cuda.get_device_name(device),
        "torch": versions()["torch"], "commit": commit() or "",
    }  # fmt: skip
    rows = compared(rows, common)
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, COLUMNS))
    of = f"{settings['net']} x{settings['width']:g}, {settings['size']} px, T = {settings['steps']}"
    shown = [c for c in COLUMNS if c not in common]
    return f"one training step of {of}, batch {settings['batch']}, on {common['device']}\n{aligned(rows, shown)}"


def compared(rows: list[dict], common: dict) -> list[dict]:
    """The rows with speed and memory relative to the first."""
    first = rows[0]
    return [
        {
            **row, **common, "graph": int(row["graph"]), "speedup_min": first["min_s"] / row["min_s"],
            "memory_ratio": row["peak_mb"] / first["peak_mb"],
        }
        for row in rows
    ]  # fmt: skip
