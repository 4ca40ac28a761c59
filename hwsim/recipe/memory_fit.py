"""Whether a run fits into the memory that is free: said by `hwsim doctor`, refused by the run before it writes."""

import torch

from hwsim.config import RunError
from hwsim.recipe.memory import largest_batch, needed, with_batch
from hwsim.recipe.memory_free import free_bytes
from hwsim.recipe.memory_ledger import Peak
from hwsim.recipe.settings import Recipe

LEAST_PART = 0.02
"""Share of the peak below which a part is not named."""


def report(recipe: Recipe, device: torch.device) -> list[str]:
    """Lines: the peak of a run and where it lies, what each part takes there, the peaks of the stages, what is free."""
    ledger = needed(recipe, device)
    peak, free = ledger.highest, free_bytes(device)
    above = "" if device.type == "cuda" else " above the libraries' own"
    lines = [f"about {_mib(peak.total)} at the most{above}, in {_where(peak)}"]
    parts = sorted(peak.parts.items(), key=lambda item: -item[1])
    lines += [f"  {_mib(n):>12}  {what}" for what, n in parts if n >= LEAST_PART * peak.total]
    stages: dict[str, Peak] = {}
    for each in ledger.peaks.values():
        if each.stage and each.total > stages.get(each.stage, Peak()).total:
            stages[each.stage] = each
    if len(stages) > 1:
        lines.append("by stage: " + ", ".join(f"{name} {_mib(p.total)} ({p.work})" for name, p in stages.items()))
    if free is None:
        return [*lines, "what is free cannot be known on this system"]
    if peak.total <= free:
        return [*lines, f"{_mib(free)} are free"]
    return [*lines, f"{_mib(free)} are free: too little; {_advice(recipe, device, free)}"]


def refuse(recipe: Recipe, device: torch.device, skip: frozenset[str] = frozenset(), processes: int = 1) -> None:
    """Raise `RunError` where the stages of a run that are left to do need more memory than is free.

    skip: finished stages. processes: that share the batches, and on a CPU the memory. Says nothing where what is free
    cannot be known.
    """
    free = free_bytes(device)
    if free is None:
        return
    if device.type == "cpu":
        free //= processes
    peak = needed(recipe, device, skip, processes).highest
    if peak.total > free:
        raise RunError(
            f"{_where(peak)}: needs about {_mib(peak.total)} of memory, {_mib(free)} are free on {device.type}; "
            f"{_advice(recipe, device, free)}; --set check_memory=false tries all the same"
        )


def _advice(recipe: Recipe, device: torch.device, free: int) -> str:
    """What to change, the least first."""
    if recipe.is_integer:
        return "take a smaller batch_size, fewer channels or steps"
    ways = []
    batch = largest_batch(recipe, device, free)
    if batch is not None:
        ways.append(_batched(recipe, batch))
    vgg = not (recipe.net.is_ordinary or recipe.net.is_bitnet)
    if vgg and not recipe.checkpoint_layers:
        lean = recipe.model_copy(update={"checkpoint_layers": True})
        with_it = "fits" if needed(lean, device).highest.total <= free else "helps where training is the peak"
        ways.append(f"--checkpoint-layers ({with_it})")
    if vgg and device.type == "cuda" and recipe.precision != "bf16":
        ways.append("--precision bf16")
    return ", or ".join([*ways, "a smaller net.width" + (" or net.steps" if vgg or recipe.net.is_bitnet else "")])


def _batched(recipe: Recipe, batch: int) -> str:
    """What to set where for this many images a batch."""
    changed = with_batch(recipe, batch).stages
    out = []
    for field in ("batch_size", "samples"):
        names = [n for n, s in recipe.stages.items() if getattr(s, field, None) != getattr(changed[n], field, None)]
        if names:
            out.append(f"{field} {batch} in " + ", ".join(f"stages.{name}" for name in names))
    return " and ".join(out)


def _where(peak: Peak) -> str:
    return f"stage {peak.stage}, {peak.work}" if peak.stage else f"reading the {peak.work}"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
