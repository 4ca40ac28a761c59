"""`hwsim doctor`: what is installed, what computes and why, and the memory that a run needs."""

import torch

from hwsim.data.release import RELEASES
from hwsim.network.lif import choose
from hwsim.recipe import manifest
from hwsim.recipe.resolve import Request, resolve
from hwsim.recipe.run import compute_device
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
        lines.append(f"{'memory':13} {_memory(resolved.recipe, device)}")
    return "\n".join(lines)


def activation_bytes(neurons: list[int], inputs: list[int], steps: int, batch: int) -> int:
    """Estimate of what one training step keeps and needs beside the parameters.

        4 T B sum(neurons) + T B sum(inputs) + 4 * 4 T B max(neurons)

    Kept: each layer's currents (float32) and its inputs (one byte each). Needed for a while: four float32 tensors of
    the size of the largest layer (spikes, their gradient, the gradient of its currents, and the convolution's
    workspace).
    """
    return steps * batch * (4 * sum(neurons) + sum(inputs) + 16 * max(neurons))


def _memory(recipe: Recipe, device: torch.device) -> str:
    from hwsim.network.vgg_bntt import build

    data = RELEASES[recipe.data.name]
    C, H, W = data.shape_CHW
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
    total = activations + parameters
    out = f"about {total / 2**20:,.0f} MiB for a training step of {batch} images above the libraries' own"
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        out += f"; {free / 2**20:,.0f} MiB are free" + ("" if total < free else ": too little; lower the batch size")
    return out
