"""What networks outside the BNTT family take: ordinary ones, their spiking form, BITnet, pattern and DECOLLE.

These laws are linear in the sizes; their numbers are measured, where the docstrings say.
"""

import math

import torch

from hwsim.data.event import SETS
from hwsim.data.windows import Window
from hwsim.network import bitnet, vgg15
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.memory_ledger import Ledger
from hwsim.recipe.settings import Recipe

STATES = "activations, states and their gradients"


class Ordinary:
    """A network without time: 16 bytes an image and output of each layer (current, average, ReLU, dropout), and as many
    for the gradients of the largest.
    """

    def __init__(self, ledger: Ledger, recipe: Recipe, given: dict, device: torch.device):
        self.ledger = ledger
        with torch.device("meta"):
            self.net = vgg15.build(recipe.net.name, width=recipe.net.width, **given)
        self.parameters = sum(p.numel() for p in self.net.parameters())
        (H, W), self.outputs = given["size"], []
        for layer, pools in self.net.pooled.items():
            self.outputs.append(len(self.net.get_submodule(layer).weight) * (H * W if layer != "fc1" else 1))
            H, W = (H // 2, W // 2) if pools else (H, W)

    def train(self, batch: int) -> None:
        """A pass forward and back."""
        self.ledger.touch(STATES, 16 * batch * (sum(self.outputs) + max(self.outputs)))

    def infer(self, batch: int) -> None:
        """A pass without gradient: a layer's current, average and output."""
        self.ledger.touch(STATES, 12 * batch * max(self.outputs))

    def count(self, batch: int) -> None:
        """The same, and masks of what arrives."""
        self.ledger.touch(STATES, 24 * batch * max(self.outputs))


class Spikings(Ordinary):
    """The spiking form of an ordinary network: membranes, and what a step of the largest layer needs."""

    def __init__(self, ledger: Ledger, recipe: Recipe, given: dict, device: torch.device, stage: Convert):
        super().__init__(ledger, recipe, given, device)
        self.steps = stage.time

    def train(self, batch: int) -> None:
        """It is not trained."""

    def infer(self, batch: int) -> None:
        """All steps of a batch."""
        self.ledger.touch(STATES, 4 * batch * (sum(self.outputs) + 4 * max(self.outputs)))

    def count(self, batch: int) -> None:
        """All steps, and masks of what arrives."""
        self.ledger.touch(STATES, 4 * batch * (sum(self.outputs) + 10 * max(self.outputs)))


class Bitnets:
    """BITnet over segments of K of its T steps: see `bitnet_bytes`. On the CPU the heap adds: at width 2,
    digits, 256 images, 815 MiB were measured for 659.
    """

    def __init__(self, ledger: Ledger, recipe: Recipe, given: dict, device: torch.device):
        net, self.ledger = recipe.net, ledger
        self.resident = 1.15 if device.type == "cpu" else 1.0
        memory = None if net.memory == "auto" else net.memory
        with torch.device("meta"):
            self.net = bitnet.build(net.name, width=net.width, **given, steps=net.steps, surrogate=net.surrogate,
                                    memory=memory, segment=net.segment)  # fmt: skip

    def train(self, batch: int) -> None:
        """A pass forward and back."""
        net = self.net
        tensors = bitnet_bytes(net.neurons, net.steps, net.segment, net.memory, batch)
        self.ledger.touch(STATES, self.resident * tensors)

    def infer(self, batch: int) -> None:
        """A pass without gradient, of so many steps at once."""
        self.ledger.touch(STATES, bitnet_bytes(self.net.neurons, 0, bitnet.AT_ONCE, "", batch))

    def count(self, batch: int) -> None:
        """The same, and masks of what arrives."""
        self.ledger.touch(STATES, 2 * bitnet_bytes(self.net.neurons, 0, bitnet.AT_ONCE, "", batch))


def bitnet_bytes(neurons: list[int], steps: int, segment: int, memory: str, batch: int) -> int:
    """Estimate for a training step of BITnet over segments of K steps: 12 + 6 K bytes an image and neuron, and what
    `bitnet_memory.py` keeps: a bit for each of T steps (bits), or T / K membranes (segments).

    Measured at width 1/2, 32 pixels, K = 1 to 4: within 15 % of the tensors that torch holds at one time.
    """
    kept = {"bits": steps / 8, "segments": 4 * steps / segment}.get(memory, 0)
    return round(batch * sum(neurons) * (12 + 6 * segment + kept))


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
