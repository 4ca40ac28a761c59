"""Stage convert: percentiles of the activations become thresholds, then the test images run through time.

Nothing is drawn but what the reference draws (`augment`, `dropout`); cells are as programmed, without spread. The
spiking network's weights and thresholds are kept as any trained network's, so that it is evaluated over chips and
counted like one; beside them lie its integer form, and its weights under the published code's keys.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from hwsim.data.augment import augment
from hwsim.data.image import batches, normalize
from hwsim.device.store import clear
from hwsim.network.convert import filter_scales, percentiles, set_thresholds
from hwsim.network.popcount import Packed, integer_outputs, packed_layers
from hwsim.network.spiking import Spiking
from hwsim.network.vgg15 import Vgg15, to_reference
from hwsim.recipe import network, readout
from hwsim.recipe.account import IDEAL_BITS, count
from hwsim.recipe.checkpoint import save_tensors
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account

INTEGER, PUBLISHED = "weights-integer.safetensors", "weights-published.safetensors"
"""Files beside the weights: the integer form; the weights that the cells hold, by the published code's keys."""


def convert(work: Work, name: str, stage: Convert, parent: Trained, folder: Path) -> dict:
    """Do the stage for a trained parent; returns what its record says: members, rows, and `tables` of rows.

    Raises `RunError` for a network of which no thresholds can be made.
    """
    member = parent.members[0]
    net = network.trained(work.recipe, work.data, work.device, parent, member, 0.0)
    clear(net)
    spiking = network.spiking(net, work.recipe, stage, 0.0)
    lambdas = percentiles(net, stage.percentile, lambda: _shown(work, stage), _dropout(work) if stage.dropout else None)
    set_thresholds(spiking, lambdas)
    spoken = ", ".join(f"{layer} {value:.4g}" for layer, value in lambdas.items())
    work.progress.say(f"{name}: percentile {stage.percentile:g} of {_images(work, stage)} images: {spoken}")
    packed = packed_layers(spiking)
    save_tensors(folder / "weights.safetensors", spiking.state_dict(), {"lambdas": lambdas})
    save_tensors(folder / INTEGER, _integer_tensors(packed), {"layers": {n: _described(p) for n, p in packed.items()}})
    held = {f"{n}.weight": layer.store.read(layer) for n, layer in net.layers.items()}
    save_tensors(folder / PUBLISHED, to_reference(net, held), {})
    seen = _simulated(work, name, stage, net, spiking)
    tables = readout.tables(seen, stage, spiking.delay)
    tables["conversion"] = _layer_rows(spiking, lambdas, packed, _rates(work, spiking))
    tables["integer"] = [_agreement(work, stage, spiking, packed)] if stage.verify and packed else []
    last = tables["steps"][-1]["accuracy"]
    work.progress.say(f"{name}: {100 * last:.2f} % after {stage.time} steps, {100 * seen.ann_accuracy:.2f} % before")
    return {"members": [{"file": "weights.safetensors", "chip": None, "shift_bit": None}], "rows": [], "tables": tables}


def _images(work: Work, stage: Convert) -> int:
    return min(stage.norm, len(work.data.train))


def _shown(work: Work, stage: Convert) -> Iterator[torch.Tensor]:
    """The calibration images, batch by batch, the same each time."""
    picture = generator(work.recipe.seed, "batches", "calibration", device=work.device)
    for images, _ in batches(work.data.train.first(stage.norm), stage.batch_size):
        yield _normalized(work, stage, images, picture)


def _dropout(work: Work):
    return lambda: generator(work.recipe.seed, "batches", "calibration dropout", device=work.device)


def _normalized(work: Work, stage: Convert, images: torch.Tensor, picture: torch.Generator) -> torch.Tensor:
    x = augment(images.to(work.device), stage.augment, picture)
    return normalize(x, work.data.mean, work.data.std)


@torch.no_grad()
def _simulated(work: Work, name: str, stage: Convert, net: Vgg15, spiking: Spiking) -> readout.Seen:
    """What the test images did: for each, by step, whether it was right and by how much its first output led."""
    net.eval()
    size = min(stage.eval_size or len(work.data.test), len(work.data.test))
    split = work.data.test.first(size)
    picture = generator(work.recipe.seed, "batches", "simulation", device=work.device)
    correct, margins, ann = [], [], []
    drop = stage.drop_last and size >= stage.batch_size
    with work.progress.task(name, size) as advance:
        for images, labels in batches(split, stage.batch_size, None, drop):
            x, y = _normalized(work, stage, images, picture), labels.to(work.device)
            sums_TBK = spiking.outputs(x)
            first, second = sums_TBK.topk(2, dim=2).values.unbind(2)
            correct.append((sums_TBK.argmax(2) == y).cpu())
            margins.append((first - second).cpu())
            ann.append((net(x)[0].argmax(1) == y).cpu())
            advance(len(y))
    return readout.Seen(torch.cat(correct, 1).numpy(), torch.cat(margins, 1).numpy(), torch.cat(ann).numpy(), size)


def _rates(work: Work, spiking: Spiking) -> dict[str, float]:
    """Firing rate of each layer: spikes a neuron and step, on the first hundred test images."""
    counts = count({"": spiking}, work.data, Account(of="", samples=100, window_rows=[]), work.recipe.seed)
    return {
        name: float(layer.spikes_T.sum()) / (counts.images * layer.neurons * counts.steps)
        for name, layer in counts.layers.items()
        if layer.neurons
    }


def _layer_rows(spiking: Spiking, lambdas: dict, packed: dict[str, Packed], rates: dict[str, float]) -> list[dict]:
    """Rows of conversion.csv, one a layer."""
    rows = []
    for name in (*spiking.pooled, "fc2"):
        layer = spiking.get_submodule(name)
        weights, outputs = layer.weight.numel(), len(layer.weight)
        theta = spiking.get_submodule(f"threshold_{name}").weight if name in lambdas else None
        bits = packed[name].bits if name in packed else IDEAL_BITS * weights
        constants = IDEAL_BITS * outputs if name in packed else IDEAL_BITS if name in lambdas else 0
        rows.append({
            "layer": name, "percentile_value": lambdas.get(name, ""),
            "delay_steps": spiking.delays.get(name, spiking.delay),
            "threshold_min": float(theta.min()) if theta is not None else "",
            "threshold_max": float(theta.max()) if theta is not None else "",
            "scale_mean": float(filter_scales(layer).mean()), "weights": weights, "filters": outputs,
            "zero_weights": int((layer.weight == 0).sum()), "weight_bits": bits // weights,
            "packed_bytes": -(-bits // 8) + constants // 8, "float32_bytes": weights * IDEAL_BITS // 8,
            "firing_rate": rates.get(name, ""),
        })  # fmt: skip
    return rows


def _agreement(work: Work, stage: Convert, spiking: Spiking, packed: dict[str, Packed]) -> dict:
    """Row of integer.csv: what the integer form says of the first `verify` test images, beside the floats."""
    images = work.data.test.images_NCHW[0 : stage.verify]
    x = normalize(images, work.data.mean, work.data.std, work.device)
    floats, whole = spiking.outputs(x)[-1], integer_outputs(spiking, packed, x)
    same = floats.argmax(1) == whole.argmax(1)
    return {
        "images": len(x), "layers": len(packed), "same_answer": int(same.sum()),
        "same_outputs": int((floats - whole).abs().amax(1).le(1e-4 * floats.abs().amax(1)).sum()),
    }  # fmt: skip


def _integer_tensors(packed: dict[str, Packed]) -> dict[str, torch.Tensor]:
    parts = itertools.product(packed.items(), ("plus", "mask", "threshold"))
    return {f"{n}.{part}": getattr(p, part) for (n, p), part in parts if getattr(p, part) is not None}


def _described(packed: Packed) -> dict:
    return {"shape": list(packed.shape), "pools": packed.pools, "fraction_bits": packed.fraction_bits}
