"""What does not go together in a recipe of BITnets, or of their settings with other networks."""

from collections.abc import Iterator

from hwsim.fields import Place
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.settings import BITNETS, Evaluate, Net, Recipe

BNTT_STEPS = 64
"""Most steps of a network with statistics for each step."""
NARROWEST = 1 / 64


def bitnet_contradictions(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    """(place, problem) of everything about BITnets that cannot be."""
    net = recipe.net
    if recipe.is_integer:
        return
    yield from _bitnet(net) if net.is_bitnet else _other(net)
    for name, stage in recipe.stages.items():
        here = ("stages", name)
        if isinstance(stage, Evaluate) and net.is_bitnet and max(stage.adapt):
            yield (*here, "adapt"), f"{net.name} has no BNTT statistics to adapt; use 0"
        if isinstance(stage, Curve) and not net.is_bitnet:
            yield here, f"{net.name} answers at the T that it was trained with; a curve is for {', '.join(BITNETS)}"


def _bitnet(net: Net) -> Iterator[tuple[Place, str]]:
    if net.encode != "direct":
        yield ("net", "encode"), f"found {net.encode}; {net.name} takes the analog image: use direct"
    for name, own in (("leak", 1.0), ("threshold", 1.0)):
        if getattr(net, name) not in (Net.model_fields[name].default, own):
            yield ("net", name), f"found {getattr(net, name):g}; {net.name} has {own:g} and no other: leave it out"
    if net.width < NARROWEST:
        yield ("net", "width"), f"found {net.width:g}; {net.name} needs at least 1/64 = {NARROWEST} for one channel"
    if net.memory == "two-pass" and net.surrogate != "S2":
        yield (
            ("net", "memory"),
            f"two-pass is for S2, whose steps do not depend on each other; {net.surrogate} takes bits or segments",
        )
    if net.segment is not None and net.memory == "full":
        yield ("net", "segment"), "memory full runs all steps at once; leave it out, or take other memory"
    elif net.segment is not None and net.segment > net.steps:
        yield ("net", "segment"), f"found {net.segment}; it can be at most net.steps, {net.steps}"


def _other(net: Net) -> Iterator[tuple[Place, str]]:
    for name in ("surrogate", "memory", "segment"):
        if getattr(net, name) != Net.model_fields[name].default:
            yield ("net", name), f"is for {', '.join(BITNETS)}; {net.name} has no such choice: leave it out"
    if net.steps > BNTT_STEPS and net.norm == "bntt":
        yield ("net", "steps"), f"found {net.steps}; it must be at most {BNTT_STEPS}"
