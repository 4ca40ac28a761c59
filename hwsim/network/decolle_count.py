"""What a DECOLLE network does on a batch, by place and step, for accounting: traces, spikes, features of readouts.

The operands of a layer's weights are its traces P, codes of several bits that stay for many steps after a spike; so
they are what arrives, and each that is not 0 is a multiplication (MAC) at every synapse that it reaches. Input spikes
only drive the traces. The readout of a layer is a linear layer of its own, on the sigmoids of the pooled membranes.

T steps, B batch, C H W input, O Y X output, F features, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hwsim.network.arrivals import arrived, fired, silent
from hwsim.network.decolle import Backend, Decolle
from hwsim.network.decolle_rule import DecolleRule, LayerPlan
from hwsim.network.decolle_trace import LayerTrace, Seen


def layer_name(i: int) -> str:
    """Name of a layer in the counts, from layer1."""
    return f"layer{i + 1}"


def readout_name(i: int) -> str:
    """Name of its readout."""
    return f"readout{i + 1}"


def counted(
    net: Decolle, x_TBCXY: Tensor, *, generator: Generator | None, rows: Sequence[int], backend: Backend = "auto"
) -> tuple[dict[str, dict], list[LayerTrace]]:
    """(name → what `hwsim.report.trace.Counts.add` takes, by layer and readout; the network's own counts).

    generator: where scores are dropped in tests. rows: heights of crossbars, as in `arrivals.active_windows`. Nothing
    learns. Raises as `Decolle.run`.
    """
    watched = [_Layer(net.rule, layer.plan, rows) for layer in net.layers]
    out = net.run(x_TBCXY, generator=generator, backend=backend, watch=lambda i, seen: watched[i].add(seen))
    names = [(layer_name(i), readout_name(i)) for i in range(len(watched))]
    traces = [trace for layer in watched for trace in layer.traces()]
    return dict(zip([n for pair in names for n in pair], traces, strict=True)), out.trace


class _Layer:
    """Sums over the steps of one layer and its readout."""

    def __init__(self, rule: DecolleRule, plan: LayerPlan, rows: Sequence[int]):
        self.plan, self.rows, self.is_dense = plan, rows, rule.kind == "dense"
        O, C, k, _ = plan.weight_shape  # noqa: E741
        # Only their shapes are asked for.
        self.synapses = (
            nn.Linear(C, O, bias=False, device="meta")
            if self.is_dense
            else nn.Conv2d(C, O, k, padding=plan.padding, bias=False, device="meta")
        )
        self.readout = nn.Linear(plan.features, rule.classes, bias=False, device="meta")
        self.steps: list[dict[str, Any]] = []
        self.read: list[dict[str, Any]] = []

    def add(self, seen: Seen) -> None:
        """One more step."""
        traces = seen.traces_BCHW.flatten(1) if self.is_dense else seen.traces_BCHW
        step = arrived(self.synapses, traces[None].float(), 0, signed=False, rows=self.rows)
        self.steps.append(step | fired(seen.fired_BOYX[None].float()))
        features = seen.features_BF
        if features is None:
            features = torch.zeros(len(traces), self.plan.features, device=traces.device)
        step = arrived(self.readout, features[None].float(), 0, signed=False, rows=self.rows)
        self.read.append(step | silent(1))

    def traces(self) -> list[dict[str, Any]]:
        """Of the layer and of its readout."""
        return [_added_up(steps) for steps in (self.steps, self.read)]


def _added_up(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over steps, and what has a step each one after the other."""
    out = dict(steps[0])
    for key in ("unit", "fractional", "spikes_N"):
        out[key] = torch.stack([s[key] for s in steps]).sum(0)
    for key in ("unit_T", "fractional_T", "spikes", "raster"):
        out[key] = torch.cat([s[key] for s in steps])
    out["windows"] = {r: torch.stack([s["windows"][r] for s in steps]).sum(0) for r in steps[0]["windows"]}
    return out
