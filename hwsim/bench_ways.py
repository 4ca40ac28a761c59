"""The contestants of `hwsim bench` on our networks: to add one, give it a name here and say how it is built."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from hwsim.network.stepwise import StepwiseVgg
from hwsim.network.vgg_bntt import VggBntt


class Way(NamedTuple):
    """A contestant: what its network is built with besides what all have, what runs it, and on which backend."""

    build: Mapping[str, Any] = MappingProxyType({})
    run: Callable[[VggBntt], Callable] = attrgetter("run")
    backend: str = "auto"


WAYS = {
    "loop": Way(run=StepwiseVgg), "folded": Way(backend="reference"), "fused": Way(),
    "bf16": Way(build={"precision": "bf16"}), "recomputed": Way(build={"checkpoint_layers": True}),
}  # fmt: skip
"""loop: time outside, layers inside. folded: layer by layer in plain torch. fused: with the backend of `lif.choose`.
bf16: fused, with that precision. recomputed: fused, with checkpoint_layers, which inference does not know."""
CHIP_WAYS = ("folded", "fused", "shared")
"""Of the evaluation over chips. shared: fused, and all chips see the same spikes on one pass (`recipe/together.py`)."""
DIGITS = {"net": "vgg5", "width": 0.5, "size": 8, "steps": 10, "batch": 64, "channels": 1}
"""The network of the recipe vat on digits."""
