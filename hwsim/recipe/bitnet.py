"""How a BITnet answers over time: accuracy, ties and zeros at every step, and the work that is left of its layers.

T steps, B batch, K classes.
"""

from collections.abc import Callable

import torch

from hwsim.data.image import ImageData, batches, normalize
from hwsim.device.store import clear
from hwsim.network.bitnet import LAYERS, Bitnet
from hwsim.recipe import network
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.readout import wilson

CURVE = (
    "network", "timestep", "trained_steps", "images", "accuracy", "ci95_low", "ci95_high", "accuracy_ties_wrong",
    "ties_fraction",
)  # fmt: skip
ACTIVITY = (
    "network", "layer", "timestep", "neurons", "spikes", "zeros_fraction", "pooled_neurons", "pooled_spikes",
    "pooled_zeros_fraction",
)  # fmt: skip
LAYER_ROWS = (
    "network", "layer", "steps", "images", "neurons", "zeros_fraction", "pooled_zeros_fraction", "input_density",
    "macs_per_step", "operation", "operations",
)  # fmt: skip
TABLES = {"curve": CURVE, "activity": ACTIVITY, "layers": LAYER_ROWS}


def answers(spikes_TBK: torch.Tensor, y_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(right, right and alone, tied), images at every step [T], of the output spikes up to it.

    The class with most spikes is the answer, of several the lowest. tied: the images at which several have most.

    >>> spikes = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])
    >>> [v.tolist() for v in answers(spikes, torch.tensor([1]))]
    [[0, 1], [0, 1], [1, 0]]
    """
    counts = spikes_TBK.cumsum(0)
    most = counts.amax(2, keepdim=True)
    tied = (counts == most).sum(2) > 1
    right = counts.argmax(2) == y_B
    return right.sum(1), (right & ~tied).sum(1), tied.sum(1)


@torch.no_grad()
def measure_curve(net: Bitnet, data: ImageData, stage: Curve, done: Callable[[int], None]) -> dict[str, list[dict]]:
    """Rows of curve.csv, activity.csv and layers.csv of a network on the test images, as programmed.

    It runs `stage.times` times its own T. zeros_fraction: neurons that do not fire, over all test images (in layers.csv
    over all steps as well); pooled_…: the same behind the 2x2 maximum. operations an image: with A the layer's dense
    MACs at a step, padding counted, the first layer's A once, of the others A times the density of its (pooled) input
    times the steps. ci95: Wilson's interval over images.
    """
    clear(net)
    net.eval()
    device = next(net.parameters()).device
    steps = stage.times * net.steps
    found = [torch.zeros(steps, dtype=torch.int64, device=device) for _ in range(3)]
    spikes = {name: torch.zeros(2, steps, dtype=torch.int64, device=device) for name in LAYERS}
    neurons: dict[str, tuple[int, int]] = {}
    for images, labels in batches(data.test, stage.batch_size):
        x = normalize(images, data.mean, data.std, device)
        out, trace, _ = net.over_time(net.encode(x), steps)
        if not stage.select_first:
            out[0] = 0
        for total, new in zip(found, answers(out, labels.to(device)), strict=True):
            total += new
        for name, here in trace.items():
            spikes[name] += torch.stack([here["spikes"], here["pooled_spikes"]])
            neurons[name] = here["neurons"], here["pooled_neurons"]
        done(len(x))
    n = len(data.test)
    by_step = {name: (total.double() / n).tolist() for name, total in spikes.items()}
    return {
        "curve": _curve_rows(net.steps, n, *(f.tolist() for f in found))[0 if stage.select_first else 1 :],
        "activity": [
            _activity(name, t, *neurons[name], *(s[t] for s in by_step[name])) for name in LAYERS for t in range(steps)
        ],
        "layers": [row for T in sorted({net.steps, steps}) for row in _layer_rows(net, T, n, neurons, by_step)],
    }


def _curve_rows(trained: int, images: int, right: list[int], alone: list[int], tied: list[int]) -> list[dict]:
    rows = []
    for t, (r, a, of) in enumerate(zip(right, alone, tied, strict=True)):
        low, high = wilson(r, images)
        rows.append({
            "timestep": t + 1, "trained_steps": trained, "images": images, "accuracy": r / images, "ci95_low": low,
            "ci95_high": high, "accuracy_ties_wrong": a / images, "ties_fraction": of / images,
        })  # fmt: skip
    return rows


def _activity(layer: str, t: int, neurons: int, pooled_neurons: int, spikes: float, pooled_spikes: float) -> dict:
    return {
        "layer": layer, "timestep": t + 1, "neurons": neurons, "spikes": spikes, "zeros_fraction": 1 - spikes / neurons,
        "pooled_neurons": pooled_neurons, "pooled_spikes": pooled_spikes,
        "pooled_zeros_fraction": 1 - pooled_spikes / pooled_neurons,
    }  # fmt: skip


def _layer_rows(net: Bitnet, steps: int, images: int, neurons: dict, by_step: dict) -> list[dict]:
    rows: list[dict] = []
    density = 1.0
    for name in LAYERS:
        zeros, pooled_zeros = (
            1 - sum(s[:steps]) / (steps * each) for s, each in zip(by_step[name], neurons[name], strict=True)
        )
        weight = net.get_submodule(name).weight
        macs = neurons[name][0] * weight[0].numel()
        rows.append({
            "layer": name, "steps": steps, "images": images, "neurons": neurons[name][0], "zeros_fraction": zeros,
            "pooled_zeros_fraction": pooled_zeros, "input_density": density, "macs_per_step": macs,
            "operation": "ac" if rows else "mac", "operations": macs * density * steps if rows else float(macs),
        })  # fmt: skip
        density = 1 - pooled_zeros
    return rows


def curves(work: Work, name: str, stage: Curve, trained: dict[str, Trained]) -> dict[str, list[dict]]:
    """Rows of the tables of stage `name`, for every network that it measures."""
    tables: dict[str, list[dict]] = {table: [] for table in TABLES}
    with work.progress.task(name, len(stage.of) * len(work.data.test)) as advance:
        for of in stage.of:
            net = network.trained(work.recipe, work.data, work.device, trained[of], trained[of].members[0], 0.0)
            made = measure_curve(net, work.data, stage, advance)
            for table, rows in made.items():
                tables[table] += [{"network": of, **row} for row in rows]
            last = made["curve"][-1]
            own = next((r for r in made["curve"] if r["timestep"] == net.steps), last)
            work.progress.say(
                f"{name}: {of} {100 * own['accuracy']:.2f} % at its {net.steps} steps, "
                f"{100 * last['accuracy']:.2f} % at {last['timestep']}"
            )
    return tables
