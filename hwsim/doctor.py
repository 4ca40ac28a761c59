"""`hwsim doctor`: what is installed, what computes and why, and the memory that a run needs."""

from hwsim.network.lif import choose
from hwsim.recipe import manifest
from hwsim.recipe.compute import compute_device
from hwsim.recipe.memory_fit import report
from hwsim.recipe.resolve import Request, resolve


def examine(recipe_name: str | None, sets: list[str], compute: str | None, from_run: str | None = None) -> str:
    """The report as text. Raises `ConfigError` like a run would, for the same mistakes."""
    resolved = resolve(Request(recipe_name, sets=sets, compute=compute, from_run=from_run)) if recipe_name else None
    device = compute_device(*(resolved.recipe.compute, resolved.recipe.precision) if resolved else (compute or "auto",))
    backend = choose(device)
    lines = [f"{name:13} {version}" for name, version in manifest.versions().items()]
    about = manifest.machine(device, backend)
    lines += [
        f"{'machine':13} {about['platform']}, {about['cores']} cores, {about['threads']} threads",
        f"{'device':13} {about['device']}" + ("" if device.type == "cuda" else " (no CUDA device asked for or found)"),
        f"{'neuron':13} {backend.name}: {backend.reason}",
    ]
    if resolved:
        lines += [f"{'memory' if not i else '':13} {line}" for i, line in enumerate(report(resolved.recipe, device))]
    return "\n".join(lines)
