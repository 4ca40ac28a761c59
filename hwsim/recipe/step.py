"""One training step, in one of two ways: eager, as it is written, or on CUDA captured in a graph that is replayed.

A step is everything between a batch and the changed weights: losses, backward, rewritten gradients, penalty, optimizer.
What comes before it (the chip that is drawn, masks, augmentation) stays outside, and in neither way does a step wait
for the GPU.

Why a graph. A step of VGG9 launches about 240 kernels; eager Python takes some 10 us for each, which is more than they
take to run where batches are small. A graph launches all of them at once.

What a graph holds for good: addresses and Python's numbers. So the batch, and the cells that were drawn since (normals,
masks), are copied into tensors that stay; the learning rate is a tensor; the generator of spikes is one that the graph
knows, which takes over the state of each epoch's own. Whatever else changes, the shape of a batch, the weight decay,
whether masks are still refreshed, makes a new graph.

The first `WARM_UP` steps are real ones, eager on the graph's own stream: they choose algorithms, compile kernels and
make the optimizer's state. Capturing executes nothing, so every batch is learned once, and both ways do the same
arithmetic in the same order: their weights agree bit for bit.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hwsim.recipe.prune import group_lasso, hybrid_layers
from hwsim.recipe.settings import Prune, Train
from hwsim.recipe.xnor import IMAGENET_SCALE, rewrite_gradients

WARM_UP = 3
"""Eager steps before a graph is captured."""
CELLS = ("z", "rram", "mask")
"""What a chip, a parent or pruning puts beside a layer's weight (`store.add_cells`)."""

Losses = Callable[[Tensor, Tensor, torch.Generator], Iterator[Tensor]]
Look = Callable[[Tensor], None]


def make_optimizer(parameters: list[nn.Parameter], stage: Train) -> torch.optim.Optimizer:
    """The stage's optimizer. On CUDA one kernel for all weights, with a learning rate on the device."""
    on_cuda = parameters[0].device.type == "cuda"
    lr = torch.tensor(stage.lr, device=parameters[0].device) if on_cuda else stage.lr
    more = {"fused": True} if on_cuda else {}
    if stage.optimizer == "adam":
        betas = (stage.betas[0], stage.betas[1])
        return torch.optim.Adam(parameters, lr, betas, weight_decay=stage.weight_decay, **more)
    return torch.optim.SGD(parameters, lr, stage.momentum, weight_decay=stage.weight_decay, **more)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """The learning rate and weight decay from now on; a learning rate that is a tensor stays the same tensor."""
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


class Eager:
    """The step as it is written."""

    def __init__(self, net: nn.Module, losses: Losses, optimizer: torch.optim.Optimizer, gradient: str):
        self.net, self.losses, self.optimizer, self.gradient = net, losses, optimizer, gradient

    def __call__(
        self, x: Tensor, y: Tensor, coding: torch.Generator, prune: Prune | None = None, look: Look | None = None
    ) -> Tensor:
        """Learn a batch; returns the last of its losses, detached and on the device.

        coding: draws the spikes. prune: adds the group lasso. look: is shown each loss before it is learned from.
        """
        for loss in self.losses(x, y, coding):
            if look is not None:
                look(loss.detach())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if self.gradient != "straight-through":
                rewrite_gradients(self.net, IMAGENET_SCALE if self.gradient == "xnor-imagenet" else 1.0)
            if prune:
                penalized = [layer.weight for layer in hybrid_layers(self.net).values()][1:]
                if penalized:
                    group_lasso(penalized, group=prune.group, ratio=prune.ratio, lamda=prune.lamda).backward()
            self.optimizer.step()
        return loss.detach()


class CudaGraph:
    """A CUDA graph and the stream that it is captured on."""

    def __init__(self):
        self._graph, self._stream = None, torch.cuda.Stream()

    def aside(self, work: Callable[[], None]) -> None:
        """Do some work on the graph's stream, in turn with what is done outside."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, work: Callable[[], None], generator: torch.Generator) -> None:
        """Keep the kernels that `work` launches, and execute none. `generator` draws anew each time."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph, stream=self._stream):
            work()
        self._graph = graph

    def replay(self) -> None:
        """Execute what was captured."""
        self._graph.replay()

    def forget(self) -> None:
        """Free the graph and its memory."""
        self._graph = None


class Captured:
    """The same step, captured and replayed; eager where that fails, which `say` is told with the reason.

    The losses it returns, and shows (behind the step, not before it), are overwritten by the next step.
    """

    def __init__(self, eager: Eager, say: Callable[[str], None], graph: CudaGraph):
        self._eager, self._say, self._graph = eager, say, graph
        self._warm, self._key, self._is_captured, self._failed = 0, None, False, False
        self._given = self._coding = None
        self._batch: tuple[Tensor, Tensor] = ()
        self._cells: dict[tuple[nn.Module, str], Tensor] = {}
        self._losses: list[Tensor] = []

    def __call__(
        self, x: Tensor, y: Tensor, coding: torch.Generator, prune: Prune | None = None, look: Look | None = None
    ) -> Tensor:
        """As `Eager`."""
        if self._failed:
            return self._eager(x, y, self._own(coding), prune, look)
        key = self._what_stays(x, y, prune)
        if key != self._key:
            self._graph.forget()
            self._key, self._warm, self._is_captured = key, 0, False
        coding = self._own(coding)
        if self._warm < WARM_UP:
            self._warm += 1
            out: list[Tensor] = []
            self._graph.aside(lambda: out.append(self._eager(x, y, coding, prune, look)))
            return out[0]
        if not self._is_captured and not self._capture(x, y, coding, prune):
            return self._eager(x, y, self._coding, prune, look)
        self._fill(x, y)
        self._graph.replay()
        for loss in self._losses if look is not None else ():
            look(loss)
        return self._losses[-1]

    def _own(self, coding: torch.Generator) -> torch.Generator:
        """The one generator that the graph knows, in the state of the one that is given."""
        if coding is not self._given:
            if self._coding is None:
                self._coding = torch.Generator(coding.device)
            self._given = coding
            self._coding.set_state(coding.get_state())
        return self._coding

    def _what_stays(self, x: Tensor, y: Tensor, prune: Prune | None) -> tuple:
        """Everything that a graph bakes in and that may change between steps."""
        cells = [None if t is None else (t.shape, t.dtype) for _, _, t in self._each_cell()]
        decays = [group["weight_decay"] for group in self._eager.optimizer.param_groups]
        return x.shape, x.dtype, y.shape, prune, decays, cells

    def _each_cell(self) -> Iterator[tuple[nn.Module, str, Tensor | None]]:
        for layer in self._eager.net.modules():
            if hasattr(layer, "store"):
                yield from ((layer, name, getattr(layer, name)) for name in CELLS)

    def _capture(self, x: Tensor, y: Tensor, coding: torch.Generator, prune: Prune | None) -> bool:
        """Capture a step; False, and eager from now on, if that cannot be done."""
        self._batch, self._losses = (x.clone(), y.clone()), []
        self._cells = {(layer, name): t.clone() for layer, name, t in self._each_cell() if t is not None}
        self._fill(x, y)
        state = coding.get_state()
        groups = [g for g in self._eager.optimizer.param_groups if "capturable" in g]
        try:
            for group in groups:
                group["capturable"] = True
            self._graph.capture(lambda: self._eager(*self._batch, coding, prune, self._losses.append), coding)
        except RuntimeError as e:
            self._failed = True
            self._graph.forget()
            self._eager.optimizer.zero_grad(set_to_none=True)
            self._coding = torch.Generator(coding.device)  # the other may still count on a graph
            self._coding.set_state(state)
            self._say(f"steps run one by one: no CUDA graph could be captured ({str(e).split(chr(10))[0]})")
            return False
        finally:
            for group in groups:
                group["capturable"] = False
        self._is_captured = True
        return True

    def _fill(self, x: Tensor, y: Tensor) -> None:
        """The batch and the present cells, into the tensors that the graph reads."""
        for there, now in zip(self._batch, (x, y), strict=True):
            there.copy_(now)
        for (layer, name), there in self._cells.items():
            now = getattr(layer, name)
            if now is not there:
                there.copy_(now)
                setattr(layer, name, there)


def why_eager(wanted: str, device: torch.device, processes: int) -> str | None:
    """Why the steps of a stage run one by one; None where they are captured. wanted: the recipe's `cuda_graphs`."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on '{device}'"
    if wanted == "off":
        return "cuda_graphs is off"
    if processes > 1:
        return f"what {processes} processes send each other is not captured"
    return None


def training_step(
    net: nn.Module, losses: Losses, optimizer: torch.optim.Optimizer, stage: Train, *, wanted: str, processes: int,
    say: Callable[[str], None],
) -> Eager | Captured:  # fmt: skip
    """The step of a stage that trains `net`, in the way that `why_eager` gives; on CUDA `say` is told which and why."""
    eager = Eager(net, losses, optimizer, stage.gradient)
    device = next(net.parameters()).device
    reason = why_eager(wanted, device, processes)
    if device.type == "cuda":
        say("steps are replayed from a CUDA graph" if reason is None else f"steps run one by one: {reason}")
    return eager if reason else Captured(eager, say, CudaGraph())
