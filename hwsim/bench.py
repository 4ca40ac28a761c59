"""`hwsim bench`: a training step of the published loop, of the folded plain-torch path and of the fast backend.

Each with the allocator's defaults and with huge pages (torch's THP_MEM_ALLOC_ENABLE), as every recipe runs. Time: one
process for each allocator, in it one step of each variant in turn, after one step each to warm up; minimum, median, and
ratios to the first variant with the default allocator. Memory: a process for each, peak resident size after two steps,
minus what the imports took. All get the same weights, images and spikes; weights are not quantized; SGD with momentum.

`--what inference` measures a pass in evaluation mode instead of a training step, `--what chips` the evaluation of a
network of the recipe vat (`CHIPS` chips of 1-bit RRAM, digits), against as many evaluations by the folded plain path.
`--what digits` is the training step of that network.

`--binary` gives all of them the same clean 1-bit weights in that pass: ours lie in a store and are read in every pass.

`--peers` adds the same network in snnTorch and SpikingJelly where they are installed (`bench_peers.py`).

`--hybrid` compares layers on devices instead, on the fast backend, with a chip drawn in every step: RRAM alone, RRAM
and SRAM as one summed weight, and both as two convolutions and a sum, as the reference computes them.
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
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hwsim.bench_hybrid import HYBRID_WAYS, on_device
from hwsim.bench_peers import PEERS, installed, peer
from hwsim.bench_ways import CHIP_WAYS, DIGITS, WAYS, Way
from hwsim.config import ConfigError, nearest
from hwsim.device.store import Rram, draw, place
from hwsim.network import lif
from hwsim.network.layer import BNTT
from hwsim.network.matrix_ir import PAIRS
from hwsim.network.vgg_bntt import PLANS, VggBntt, build
from hwsim.recipe.manifest import commit, versions
from hwsim.report.table import aligned, csv_bytes

WHAT = {
    "step": "training_step", "inference": "inference_pass", "digits": "training_step", "chips": "chips_pass",
}  # fmt: skip
"""What is measured → the function of this file that makes it."""
CHIPS = 25
ALLOCATORS = ("default", "huge")
THREADS = 2
COLUMNS = (
    "what", "variant", "allocator", "net", "width", "size_px", "steps", "batch", "threads", "samples", "min_s",
    "median_s", "speedup_min", "speedup_median", "peak_mb_above_imports", "memory_ratio", "torch", "commit",
)  # fmt: skip
HYBRID_COLUMNS = tuple(c.replace("speedup", "time_ratio") for c in COLUMNS)


def _runner(how: str, model: VggBntt) -> Callable:
    """What runs an encoded input in one of the ways."""
    return peer(how, model) if how in PEERS else WAYS.get(how, Way()).run(model)


def _given(
    how: str, *, net: str, width: float, size: int, steps: int, batch: int, channels: int = 3, binary: bool = False
) -> tuple[VggBntt, torch.Tensor, torch.Generator]:
    """The same network, images and generator of spikes for every way."""
    generator = torch.Generator().manual_seed(0)
    shape = {"width": width, "channels": channels, "size": (size, size), "classes": 10, "steps": steps}
    model = build(net, **shape, **WAYS.get(how, Way()).build, generator=generator)
    if binary:
        for layer in place(model, {"*": Rram(bits=1)}):
            weight = model.get_submodule(layer).weight
            weight.data = model.get_submodule(layer).store.held(weight.detach())
    return model, torch.randn(batch, channels, size, size, generator=generator), generator


def _timed(how: str, work: Callable[[], float]) -> Callable[[], tuple[float, float]]:
    """A function that does the work in one of the ways and returns its seconds and result."""

    def once() -> tuple[float, float]:
        lif.forced = WAYS.get(how, Way()).backend
        try:
            start = time.perf_counter()
            result = work()
            return time.perf_counter() - start, result
        finally:
            lif.forced = "auto"

    return once


def training_step(how: str, **settings) -> Callable[[], tuple[float, float]]:
    """A function that does one training step in one of the `WAYS` or `HYBRID_WAYS` and returns its seconds and loss."""
    model, x, generator = _given(how, **settings)
    y = torch.randint(10, (len(x),), generator=generator)
    if how in HYBRID_WAYS:
        on_device(model, how)
    chips = torch.Generator().manual_seed(1)
    run = _runner(how, model)
    owner = run if isinstance(run, nn.Module) else model
    optimizer = torch.optim.SGD(owner.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step() -> float:
        draw(model, chips)
        loss = F.cross_entropy(run(model.encode(x, generator))[0], y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return _timed(how, step)


def inference_pass(how: str, **settings) -> Callable[[], tuple[float, float]]:
    """A function that runs a batch in evaluation mode in one of the `WAYS` and returns its seconds and a mean logit."""
    model, x, generator = _given(how, **settings)
    for norm in model.modules():
        if isinstance(norm, BNTT):
            norm.momentum = 1.0
    with torch.no_grad():
        model(x, generator)  # its statistics are those of this batch now, and neurons fire as in training
    run = _runner(how, model)
    if how in PEERS:
        for norm in run.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.momentum = 1.0
        with torch.no_grad():
            run(model.encode(x, generator))
    model.eval()
    if isinstance(run, nn.Module):
        run.eval()

    @torch.no_grad()
    def once() -> float:
        return run(model.encode(x, generator))[0].abs().mean().item()

    return _timed(how, once)


def chips_pass(how: str, *, chips: int = CHIPS, **_) -> Callable[[], tuple[float, float]]:
    """A function that tests the network of the recipe vat on chips; returns its seconds and mean accuracy.

    how: one of `CHIP_WAYS`. The network has its first weights: its answers cost as much as a trained one's.
    """
    from hwsim.data.image import load_images
    from hwsim.recipe import network
    from hwsim.recipe.evaluate import over_chips
    from hwsim.recipe.resolve import Request, resolve
    from hwsim.recipe.settings import Evaluate

    recipe = resolve(Request("vat", {"quant": "1"})).recipe
    data = load_images(recipe.data.name)
    net = network.fresh(recipe, data, torch.device("cpu"))
    network.place_stores(net, recipe, network.store(recipe, 1.0))
    stage = Evaluate(of=["vat"], chips=chips, spikes="shared" if how == "shared" else "per-chip")

    def once() -> float:
        rows = list(over_chips(lambda chip: [net], range(chips), data, stage, 0, lambda images: None))
        return sum(row["accuracy"] for row in rows) / chips

    return _timed(how, once)


def _in_process(call: str, allocator: str, module: str = "bench", **environment: str) -> Any:
    """What a function of a module of this package prints as JSON in a fresh process with the given allocator."""
    chosen = {"THP_MEM_ALLOC_ENABLE": "1" if allocator == "huge" else "0", **environment}
    command = [sys.executable, "-c", f"from hwsim import {module}; {module}.{call}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **chosen})
    return json.loads(done.stdout)


def _print_seconds(make: str, ways: tuple[str, ...], samples: int, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    steps = {how: globals()[make](how, **settings) for how in ways}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {how: [] for how in ways}
    for _ in range(samples):
        for how, step in steps.items():
            seconds[how].append(step()[0])
    print(json.dumps(seconds))


def _print_peak(make: str, how: str, settings: dict) -> None:
    torch.set_num_threads(THREADS)
    tiny = {**settings, "net": "vgg5", "width": 0.1, "size": 8, "steps": 2, "batch": 2, "chips": 1}
    tiny = tiny if make == "chips_pass" else {k: v for k, v in tiny.items() if k != "chips"}
    globals()[make](how, **tiny)()  # what the libraries load on first use counts as imports
    before = _resident_mb()
    step = globals()[make](how, **settings)
    step(), step()
    print(json.dumps(_resident_mb() - before))


def _resident_mb() -> float:
    """Peak resident size of this process. Not from getrusage on Linux: there a child starts with its parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def bench(
    *, csv_file: Path | None, samples: int, hybrid: bool = False, what: str = "step", peers: bool = False, **settings
) -> str:
    """Measure every way with every allocator; returns the table as text and writes it as CSV where asked.

    hybrid: the `HYBRID_WAYS`, with times relative to rram; else the `WAYS`, with speed relative to the first of them.
    """
    if hybrid and what != "step":
        raise ConfigError([f"--hybrid: measures a training step; leave --what {what} out"])
    if settings.get("binary") and what != "inference":
        raise ConfigError([f"--binary: measures a pass in evaluation mode; add --what inference, not {what}"])
    if settings["net"] not in PLANS:
        raise ConfigError([f"--net: there is no network '{settings['net']}'{nearest(settings['net'], PLANS)}"])
    ways, columns = (HYBRID_WAYS, HYBRID_COLUMNS) if hybrid else (WAYS, COLUMNS)
    ways = CHIP_WAYS if what == "chips" else tuple(ways)
    if what == "inference" or not PAIRS:  # there bf16 is float32, or cannot be
        ways = tuple(way for way in ways if way != "bf16")
    if what == "inference":
        ways = tuple(way for way in ways if way != "recomputed")
    if what in ("chips", "digits"):
        settings |= DIGITS
    if peers:
        if hybrid or what == "chips":
            raise ConfigError(["--peers: they have neither hybrid layers nor chips; leave it out"])
        if not installed():
            raise ConfigError([
                "--peers: neither snntorch nor spikingjelly is installed; pip install --no-deps snntorch spikingjelly "
                "loguru tqdm"
            ])  # fmt: skip
        ways += installed()
    seconds, memory = {}, {}
    for allocator in ALLOCATORS:
        for how, values in _in_process(
            f"_print_seconds({WHAT[what]!r}, {ways}, {samples}, {settings!r})", allocator
        ).items():
            seconds[how, allocator] = values
            memory[how, allocator] = _in_process(f"_print_peak({WHAT[what]!r}, {how!r}, {settings!r})", allocator)
    low, middle = ({v: f(s) for v, s in seconds.items()} for f in (min, statistics.median))
    first = (ways[0], ALLOCATORS[0])

    def ratios(v: tuple[str, str]) -> dict[str, float]:
        if hybrid:
            return {"time_ratio_min": low[v] / low[first], "time_ratio_median": middle[v] / middle[first]}
        return {"speedup_min": low[first] / low[v], "speedup_median": middle[first] / middle[v]}

    common = {
        "what": what, "net": settings["net"], "width": settings["width"], "size_px": settings["size"],
        "steps": settings["steps"], "batch": settings["batch"], "threads": THREADS, "samples": samples,
        "torch": versions()["torch"], "commit": commit() or "",
    }  # fmt: skip
    if settings.get("binary"):
        common["weight_bits"], columns = 1, (*columns, "weight_bits")
    rows = [
        {
            "variant": how,
            "allocator": allocator,
            "min_s": low[v],
            "median_s": middle[v],
            **ratios(v),
            "peak_mb_above_imports": memory[v],
            "memory_ratio": memory[v] / memory[first],
            **common,
        }  # fmt: skip
        for how in ways
        for allocator in ALLOCATORS
        for v in [(how, allocator)]
    ]
    if csv_file is not None:
        from hwsim.recipe.checkpoint import write_whole

        write_whole(csv_file, csv_bytes(rows, columns))
    shown = [c for c in columns if c not in common]
    if what == "chips":
        return f"{CHIPS} chips of the network of vat, {THREADS} threads\n{aligned(rows, shown)}"
    of = f"{settings['net']} x{settings['width']:g}, {settings['size']} px, T = {settings['steps']}"
    title = "one pass in evaluation mode" if what == "inference" else "one training step"
    title += " with 1-bit weights" if settings.get("binary") else ""
    return f"{title} of {of}, batch {settings['batch']}, {THREADS} threads\n{aligned(rows, shown)}"
