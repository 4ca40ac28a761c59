"""`hwsim doctor`: what is installed, what computes and why, and the memory that a run needs."""

import math

import torch

from hwsim.data.event import SETS
from hwsim.data.release import RELEASES
from hwsim.data.windows import Window
from hwsim.network.lif import choose
from hwsim.recipe import manifest
from hwsim.recipe.compute import compute_device
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.resolve import Request, resolve
from hwsim.recipe.settings import Recipe, Train


def examine(recipe_name: str | None, sets: list[str], compute: str | None, from_run: str | None = None) -> str:
    """The report as text. Raises `ConfigError` like a run would, for the same mistakes."""
    resolved = resolve(Request(recipe_name, sets=sets, compute=compute, from_run=from_run)) if recipe_name else None
    device = compute_device(resolved.recipe.compute if resolved else compute or "auto")
    backend = choose(device)
    lines = [f"{name:13} {version}" for name, version in manifest.versions().items()]
    about = manifest.machine(device, backend)
    lines += [
        f"{'machine':13} {about['platform']}, {about['cores']} cores, {about['threads']} threads",
        f"{'device':13} {about['device']}" + ("" if device.type == "cuda" else " (no CUDA device asked for or found)"),
        f"{'neuron':13} {backend.name}: {backend.reason}",
    ]
    if resolved:
        memory = _integer_memory if resolved.recipe.is_integer else _memory
        lines.append(f"{'memory':13} {memory(resolved.recipe, device)}")
    return "\n".join(lines)


def activation_bytes(neurons: list[int], inputs: list[int], steps: int, batch: int) -> int:
    """Estimate of what one training step keeps and needs beside the parameters.

        4 T B sum(neurons) + T B sum(inputs) + 4 * 4 T B max(neurons)

    Kept: each layer's currents (float32) and its inputs (one byte each). Needed for a while: four float32 tensors of
    the size of the largest layer (spikes, their gradient, the gradient of its currents, and the convolution's
    workspace).
    """
    return steps * batch * (4 * sum(neurons) + sum(inputs) + 16 * max(neurons))


def bitnet_bytes(neurons: list[int], steps: int, segment: int, memory: str, batch: int) -> int:
    """Estimate for a training step of BITnet over segments of K steps: 12 + 6 K bytes an image and neuron, and what
    `bitnet_memory.py` keeps: a bit for each of T steps (bits), or T / K membranes (segments).

    Measured at width 1/2, 32 pixels, K = 1 to 4: within 15 % of the tensors that torch holds at one time.
    """
    kept = {"bits": steps / 8, "segments": 4 * steps / segment}.get(memory, 0)
    return round(batch * sum(neurons) * (12 + 6 * segment + kept))


def _memory(recipe: Recipe, device: torch.device) -> str:
    from hwsim.network.vgg_bntt import build

    data = RELEASES[recipe.data.name]
    C, H, W = data.shape_CHW
    if recipe.net.is_bitnet:
        from hwsim.network import bitnet

        given, batch = (
            recipe.net,
            max((s.batch_size for s in recipe.stages.values() if isinstance(s, Train)), default=1),
        )
        memory = None if given.memory == "auto" else given.memory
        with torch.device("meta"):
            net = bitnet.build(given.name, width=given.width, channels=C, size=(H, W), classes=data.classes,
                               steps=given.steps, surrogate=given.surrogate, memory=memory,
                               segment=given.segment)  # fmt: skip
        total = bitnet_bytes(net.neurons, net.steps, net.segment, net.memory, batch)
        total += 6 * 4 * sum(p.numel() for p in net.parameters())  # with both averages of Adam
        return _said(total, f"a training step of {batch} images", device)
    if recipe.net.is_ordinary:
        batch = max((s.batch_size for s in recipe.stages.values() if isinstance(s, Train)), default=1)
        return _said(_ordinary_bytes(recipe, batch), f"a training step of {batch} images", device)
    with torch.device("meta"):
        net = build(recipe.net.name, width=recipe.net.width, channels=C, size=(H, W), classes=data.classes,
                    steps=recipe.net.steps)  # fmt: skip
    neurons, inputs = [], []
    for name, _, pool in net.blocks:
        weight = net.get_submodule(name).weight
        neurons.append(weight.shape[0] * H * W)
        inputs.append(weight.shape[1] * H * W)
        H, W = (H // 2, W // 2) if pool == "A" else (1, 1) if pool == "G" else (H, W)
    neurons.append(net.fc1.weight.shape[0])
    batch = max((s.batch_size for s in recipe.stages.values() if isinstance(s, Train)), default=1)
    activations = activation_bytes(neurons, inputs, recipe.net.steps, batch)
    parameters = 5 * 4 * sum(p.numel() for p in net.parameters())  # weights, gradients, momentum, best, what cells hold
    return _said(activations + parameters, f"a training step of {batch} images", device)


def _ordinary_bytes(recipe: Recipe, batch: int) -> int:
    """Estimate for a training step of a network without time: 16 bytes an image and output of each layer (current,
    average, ReLU, dropout), as many for the gradients of the largest, and 6 times the parameters.
    """
    from hwsim.data.image import FOLDERS
    from hwsim.data.image_folder import CROP_PX
    from hwsim.network import vgg15

    name, folders = recipe.net.name, recipe.data.name == FOLDERS
    C, H, W = (3, CROP_PX, CROP_PX) if folders else RELEASES[recipe.data.name].shape_CHW
    classes = 1000 if folders else RELEASES[recipe.data.name].classes
    with torch.device("meta"):
        net = vgg15.build(name, width=recipe.net.width, channels=C, size=(H, W), classes=classes)
    outputs = []
    for layer, pools in net.pooled.items():
        outputs.append(len(net.get_submodule(layer).weight) * (H * W if layer != "fc1" else 1))
        H, W = (H // 2, W // 2) if pools else (H, W)
    return 16 * batch * (sum(outputs) + max(outputs)) + 6 * 4 * sum(p.numel() for p in net.parameters())


def pattern_bytes(stage: Pattern) -> int:
    """Estimate for the pattern network: 29 bytes a weight (master, code, gradient, random number) and 24 a neuron and
    step (the tape). Measured at 700-400-250 and three times as wide, T = 250 and 1000: within 15 %.
    """
    weights = stage.hidden * (stage.inputs + stage.outputs)
    return 29 * weights + 24 * stage.steps * (stage.hidden + stage.outputs)


def decolle_bytes(stage: Decolle) -> int:
    """Estimate for DECOLLE: with C k k H' W' columns of each convolution, a layer's largest tensor,

        fused     4 batch columns + 55 weights + T batch inputs          otherwise 6.5 and 120 in place of 4 and 55

    Measured at 16-32-32 and 64-128-128 channels, 8 to 32 recordings a batch: within 15 %. The recordings themselves
    stay on the disk, but those of `shapes` and of archives lie in memory too, and are not counted here.
    """
    from hwsim.network.decolle_cpu import available

    events, facts = stage.events, SETS[stage.events.name]
    given = {"steps": events.steps or facts.steps, "step_ms": events.step_ms or facts.step_ms}
    window = Window(**given, ds=events.ds or facts.ds, mode=events.mode)
    inputs, *image = window.shape_CXY(facts.sensor)
    rule = stage.rule(tuple(image), inputs, len(facts.class_names))
    columns = sum(math.prod(p.weight_shape[1:]) * math.prod(p.out[1:]) for p in rule.plan())
    weights = sum(math.prod(p.weight_shape) for p in rule.plan())
    fused = stage.backend in ("auto", "fused") and available(rule, torch.device("cpu"))[0]
    a, b = (4, 55) if fused else (6.5, 120)
    steps = max(window.steps, events.test_steps or events.steps or facts.test_steps)
    return round(a * stage.batch_size * columns + b * weights) + steps * stage.batch_size * inputs * math.prod(image)


def _integer_memory(recipe: Recipe, device: torch.device) -> str:
    needed = [pattern_bytes(s) for s in recipe.stages.values() if isinstance(s, Pattern)]
    needed += [decolle_bytes(s) for s in recipe.stages.values() if isinstance(s, Decolle)]
    return _said(max(needed), "the largest stage", device)


def _said(total: int, what: str, device: torch.device) -> str:
    out = f"about {total / 2**20:,.0f} MiB for {what} above the libraries' own"
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        out += f"; {free / 2**20:,.0f} MiB are free" + ("" if total < free else ": too little; lower the batch size")
    return out
