"""What a pass of a spiking VGG takes and keeps, layer by layer: the memory law of `network/vgg_bntt.py`.

A tensor of T steps, B images and n numbers an image takes 4 T B n bytes (2 where currents and spikes are bfloat16).
In training a layer keeps

    its currents, 4 bytes a neuron, step and image; of its input a bit or a byte; the weight as it was read

or, with checkpoint_layers, the input alone. While it works a layer has its input, currents and spikes, or in the
backward pass the gradient of its spikes, its currents and their gradient, then that and the gradient of its input;
beside them what its kernel needs: Winograd's patches (`conv_cpu`), sums of weight gradients (`events_cpu`). Spikes are
taken to be sparse enough for `events_cpu`.

T steps, B batch, C channels, H W image.
"""

import math
from dataclasses import dataclass

import torch

from hwsim.network import lif
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe.memory_ledger import Block, Ledger

CURRENTS, SPIKES, KEPT = "currents", "spikes", "inputs kept for gradients"
GRADIENTS, SCRATCH, READ, CODING = "gradients of currents and spikes", "scratch of kernels", "weights as read", "coding"
REFERENCE = 3
"""The plain-torch neuron keeps this many tensors of a layer's currents."""
WINOGRAD, EVENTS = 2 * 2**20, 2**26
"""Bytes of the patches of a chunk of images in `conv_cpu`, and of the groups of sums in `events_cpu`, at the most."""
CUDNN = 2**28
"""Bytes that cuDNN is taken to need for a convolution (its workspace depends on the GPU; assumed)."""


@dataclass(frozen=True)
class Layer:
    """A layer with its neurons. C, K: channels in and out; H, W and h, w: image before and behind the pool."""

    name: str
    C: int
    K: int
    H: int
    W: int
    h: int
    w: int
    parts: int
    signed: bool
    is_linear: bool
    kernel: str
    """What computes currents: events, winograd, torch (all else on the CPU, and CUDA)."""
    back: str
    """What computes the gradient of its input: winograd, torch."""

    @property
    def inputs(self) -> int:
        """Numbers of an image that enter."""
        return self.C * self.H * self.W

    @property
    def neurons(self) -> int:
        """Neurons of an image."""
        return self.K if self.is_linear else self.K * self.H * self.W

    @property
    def outputs(self) -> int:
        """Numbers of an image that leave."""
        return self.K if self.is_linear else self.K * self.h * self.w

    @property
    def weights(self) -> int:
        """Weights."""
        return self.inputs * self.K if self.is_linear else 9 * self.C * self.K


class Passes:
    """Passes of one network on a device, entered into a ledger."""

    def __init__(self, ledger: Ledger, net: VggBntt, shape_CHW: tuple[int, int, int], device: torch.device):
        self.ledger, self.net, self.shape_CHW = ledger, net, shape_CHW
        self.steps, self.on_cuda = net.steps, device.type == "cuda"
        # Planned where there is no GPU, a run on one is taken to have its kernels.
        name = "cuda" if self.on_cuda and not torch.cuda.is_available() else lif.choose(device).name
        self.is_reference, self.has_kernels = name == "reference", name == "cpu"
        self.precision = net.conv1.precision if hasattr(net, "conv1") else "float32"
        self.size = 2 if self.on_cuda and self.precision == "bf16" and not self.is_reference else 4
        """Bytes of a current or a spike."""

    def layers(self, batch: int) -> list[Layer]:
        """The layers with neurons, and which kernels compute them for a batch."""
        C, H, W = self.shape_CHW
        parts, signed = (1 if self.net.coding == "poisson" else 0), True
        out = []
        for number, (name, _, pool) in enumerate(self.net.blocks):
            K = len(self.net.get_submodule(name).weight)
            h, w = (H // 2, W // 2) if pool == "A" else (H, W)
            images = batch * (1 if number == 0 and self.net.coding == "direct" else self.steps)
            kernel, back = self._kernels(images, C, K, H, W, parts)
            out.append(Layer(name, C, K, H, W, h, w, parts, signed, False, kernel, back))
            C, parts, signed = K, {"": 1, "A": 4, "G": h * w}[pool], False
            H, W = (1, 1) if pool == "G" else (h, w)
        hidden = len(self.net.fc1.weight)
        return [*out, Layer("fc1", C, hidden, H, W, 1, 1, parts, signed, True, "torch", "torch")]

    def _kernels(self, N: int, C: int, K: int, H: int, W: int, parts: int) -> tuple[str, str]:
        if not self.has_kernels:
            return "torch", "torch"
        from hwsim.network import conv_cpu, events_cpu

        x, grad, weight = (torch.empty(1).expand(*s) for s in ((N, C, H, W), (N, K, H, W), (K, C, 3, 3)))
        winograd = "winograd" if parts and conv_cpu.fits(x, weight, (1, 1)) else "torch"
        kernel = "events" if parts == 1 and events_cpu.fits(x, weight, (1, 1)) else winograd
        return kernel, "winograd" if conv_cpu.fits(grad, weight.transpose(0, 1), (1, 1)) else "torch"

    def coded(self, batch: int) -> Block:
        """The input over time."""
        n, take = batch * math.prod(self.shape_CHW), self.ledger.take
        if self.net.coding != "poisson":
            return take(CODING, 4 * n)
        n *= self.steps
        drawn = take(CODING, 4 * n)
        twice, fires = take(CODING, 4 * n), take(CODING, n)
        self.ledger.drop(twice)
        x = take(CODING, 4 * n)
        self.ledger.drop(drawn, fires)
        return x

    def infer(self, batch: int) -> None:
        """A pass without gradient."""
        self._forward(batch, "infer")

    def count(self, batch: int) -> None:
        """A pass that counts for accounting: neurons and pools apart, and masks of what arrives."""
        self._forward(batch, "count")

    def train(self, batch: int) -> None:
        """A pass forward and back."""
        self._backward(batch, self._forward(batch, "recompute" if self.net.checkpoint_layers else "train"))

    def _forward(self, batch: int, way: str) -> list[tuple[Layer, list[Block], Block | None]]:
        """For each layer what it keeps, and its currents if it keeps them; the rest has died."""
        L, first, kept = self.ledger, self.coded(batch), []
        x = None
        for number, layer in enumerate(self.layers(batch)):
            once = number == 0 and self.net.coding == "direct"
            N, in_time = batch * (1 if once else self.steps), batch * self.steps
            if layer.is_linear and layer.H * layer.W > 1 and not once:
                flat = L.take(SPIKES, self.size * N * layer.inputs)
                if x is not None:
                    L.drop(x)
                x = flat
            mine = [L.take(READ, 4 * layer.weights)] if way in ("train", "recompute") else []
            if mine:  # mean, variance or the like: numbers a step and channel
                mine.append(L.take(KEPT, (16 if way == "train" else 8) * self.steps * layer.K))
            if way == "count":
                self._arrived(layer, N)
            y = L.take(CURRENTS, self.size * N * layer.neurons, of_kernels=layer.kernel != "torch")
            self._scratch(layer, N)
            if way == "train" and not (layer.is_linear and self.is_reference):
                mine.append(self._kept(layer, N))
            if once and not self.is_reference:
                L.touch(CURRENTS, self.size * in_time * layer.neurons)
            counts = way == "count"
            leaves = in_time * (layer.neurons if counts else layer.outputs)
            extra = (
                [L.take(CURRENTS, self.size * (REFERENCE - 1) * in_time * layer.neurons)] if self.is_reference else []
            )
            out = L.take(SPIKES, self.size * leaves, of_kernels=not self.is_reference)
            if way == "recompute":
                mine.append(self._kept(layer, N))
            if counts:  # `arrivals.fired`: in one row, and again in float64
                row = L.take(SCRATCH, 4 * leaves)
                L.touch(SCRATCH, 8 * leaves)
                L.drop(row)
                if layer.outputs != layer.neurons:
                    L.drop(y)
                    pooled = L.take(SPIKES, 4 * in_time * layer.outputs)
                    L.drop(out)
                    out, y = pooled, None
            if way != "train":
                L.drop(*extra, *([y] if y is not None else []))
            if x is not None:
                if way == "train" and layer.is_linear and self.is_reference:
                    mine.append(x)
                else:
                    L.drop(x)
            kept.append((layer, mine + (extra if way == "train" else []), y if way == "train" else None))
            x = out
        L.drop(first, x)
        return kept

    def _backward(self, batch: int, kept: list) -> None:
        L, in_time = self.ledger, batch * self.steps
        grad = L.take(GRADIENTS, self.size * in_time * kept[-1][0].outputs)
        for number, (layer, mine, y) in reversed(list(enumerate(kept))):
            once = number == 0 and self.net.coding == "direct"
            N, again = batch * (1 if once else self.steps), []
            is_fast = layer.kernel != "torch"
            if y is None:
                if layer.kernel != "events":
                    again.append(L.take(SPIKES, self.size * N * layer.inputs))
                y = L.take(CURRENTS, self.size * N * layer.neurons, of_kernels=is_fast)
                self._scratch(layer, N)
                if again and not (layer.is_linear or self.on_cuda or not layer.parts):
                    L.drop(again.pop())
            extra = [L.take(CURRENTS, 4 * REFERENCE * in_time * layer.neurons)] if self.is_reference else []
            if once and not self.is_reference:
                extra.append(L.take(CURRENTS, self.size * in_time * layer.neurons))
            grad_y = L.take(GRADIENTS, self.size * in_time * layer.neurons, of_kernels=not self.is_reference)
            L.drop(grad, y, *extra)
            if once:
                summed = L.take(GRADIENTS, self.size * N * layer.neurons)
                L.drop(grad_y)
                grad_y = summed
            if number:
                grad = L.take(GRADIENTS, self.size * N * layer.inputs, of_kernels=layer.back == "winograd")
                self._scratch(layer, N, back=True)
            self._weight_scratch(layer, N)
            L.drop(grad_y, *again, *mine)

    def _kept(self, layer: Layer, N: int) -> Block:
        """What the backward pass has of a layer's input."""
        numbers, spikes = N * layer.inputs, layer.parts == 1 and not layer.signed
        if layer.kernel == "events":
            return self.ledger.take(KEPT, 4 * N * layer.H * layer.W * -(-layer.C // 32))
        if not 0 < layer.parts <= 127 or layer.parts & (layer.parts - 1):
            return self.ledger.take(KEPT, self.size * numbers)
        bits = spikes and (self.net.checkpoint_layers or (self.on_cuda and layer.C % 8 == 0 and not layer.is_linear))
        if layer.is_linear and self.on_cuda and not self.net.checkpoint_layers:
            return self.ledger.take(KEPT, self.size * numbers)
        if bits and not self.on_cuda:
            self.ledger.touch(SCRATCH, 3 * numbers)
        return self.ledger.take(KEPT, numbers / 8 if bits else numbers)

    def _scratch(self, layer: Layer, N: int, back: bool = False) -> None:
        """What the kernel of a convolution needs while it works."""
        L, kernel = self.ledger, layer.back if back else layer.kernel
        if layer.is_linear:
            return
        if self.on_cuda:
            again = [L.take(SPIKES, self.size * N * layer.inputs)] if back else []
            L.touch(SCRATCH, CUDNN)
            L.drop(*again)
        elif kernel == "winograd":
            patches = 144 * N * (layer.H // 4) * (layer.W // 4)
            two = [L.take(SCRATCH, min(WINOGRAD, patches * n), of_kernels=True) for n in (layer.C, layer.K)]
            L.touch(SCRATCH, 144 * layer.C * layer.K)
            L.drop(*two)
        elif kernel == "torch" and layer.C > 8 and (layer.C % 16 or layer.K % 16):  # oneDNN fills blocks of 16 channels
            blocks = -(-layer.C // 16) + -(-layer.K // 16)
            L.touch(SCRATCH, 64 * N * blocks * layer.H * layer.W)
        elif kernel == "torch" and self.precision == "bf16" and layer.parts:
            L.touch(SCRATCH, 2 * N * (layer.inputs + layer.neurons))
        elif kernel == "events":
            L.touch(SCRATCH, 4 * N * layer.H * layer.W * -(-layer.C // 32))

    def _weight_scratch(self, layer: Layer, N: int) -> None:
        """What the gradient of a layer's weights needs."""
        L = self.ledger
        if layer.is_linear or self.on_cuda:
            L.touch(SCRATCH, 4 * layer.weights + (0 if self.on_cuda else 4 * N * layer.inputs))
        elif layer.kernel == "events":
            of_group = 36 * layer.K * 32 * -(-layer.C // 32)
            L.touch(SCRATCH, max(1, min(16, N, EVENTS // of_group)) * of_group, of_kernels=True)
        elif layer.kernel == "winograd":
            sums, patches = 144 * layer.C * layer.K, 144 * N * (layer.H // 4) * (layer.W // 4)
            chunks = [min(max(WINOGRAD, sums), patches * n) for n in (layer.C, layer.K)]
            two = [L.take(SCRATCH, chunk, of_kernels=True) for chunk in chunks]
            L.touch(SCRATCH, 2 * sums)
            L.drop(*two)
        else:
            L.touch(SCRATCH, 4 * 32 * (layer.inputs + layer.neurons) + 4 * layer.weights)

    def _arrived(self, layer: Layer, N: int) -> None:
        """`arrivals.arrived`: three masks of the input and one tensor of it, then crossbars."""
        n = N * layer.inputs
        masks = self.ledger.take(SCRATCH, 3 * n)
        self.ledger.touch(SCRATCH, 8 * n)
        self.ledger.drop(masks)


def made(name: str, width: float, **settings) -> VggBntt:
    """The network without its numbers."""
    with torch.device("meta"):
        return build(name, width=width, **settings)
