"""What a DECOLLE network computes with: sizes, bit widths, profiles, rates, and the checks of them.

Every layer is a convolution of traces of its input spikes (kind `conv`), or fully connected (kind `dense`, which is the
same on 1 x 1 maps), and owns a fixed random readout from which it learns alone, at every time step. Three profiles:

    profile   first weights (wb set)   refractory state (rfb)    dropout of scores         cap of P, Q   rate halves
    release   all zero (trap B9)       sticks after a spike      x p/(1-p), also in tests  1             every 80
              rounding f >= r (B7)     (B10)                     (B11); jitter too (B12)                 epochs
    paper     as release               as release                as release                0.75          every 60
    fixed     quant_w(W/wm) wm         rounded down where it     x 1, in training only     1             every 80
              unbiased rounding        did not fire: it decays

Cap and halving of `paper` are those of DVS Gesture; its runs on Slow-Poker-DVS had cap 1 and 40 epochs. Both can be
set by themselves. Source: Schaefer and Joshi, ICONS 2020, doi 10.1145/3407197.3407203 and its published code; DECOLLE:
Kaiser, Mostafa, Neftci, 2020, arXiv 1811.10766. Tags such as B9 are traps of the specification of that code.
"""

import math
from dataclasses import dataclass
from typing import Literal

from hwsim.config import ConfigError

WIDTHS = {
    "wb": (1, 16), "qb": (1, 16), "pb": (1, 16), "rfb": (1, 16), "sb": (2, 12), "gb": (2, 16), "eb": (1, 16),
    "ub": (2, 16), "ab": (2, 12), "sig": (1, 16), "rb": (2, 16),
}  # fmt: skip
"""Smallest and largest of each width; None switches that quantizer off."""


@dataclass(frozen=True)
class LayerPlan:
    """Sizes of one layer. shape: input [C, H, W]; out: of the convolution; pooled: what goes on, and to the readout."""

    shape: tuple[int, int, int]
    out: tuple[int, int, int]
    pooled: tuple[int, int, int]
    kernel: int
    padding: int
    pool: int

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[O, C, k, k]."""
        return self.out[0], self.shape[0], self.kernel, self.kernel

    @property
    def features(self) -> int:
        """Inputs of the readout."""
        return math.prod(self.pooled)


@dataclass(frozen=True)
class DecolleRule:
    """Sizes, widths and rule of learning. A width None switches that quantizer off."""

    image: tuple[int, int] = (32, 32)
    """Pixels of the input, as the events have them: x, then y."""
    inputs: int = 2
    """Channels of the input (OFF and ON events)."""
    classes: int = 11
    kind: Literal["conv", "dense"] = "conv"
    """conv: convolutions. dense: fully connected layers on the flattened input."""
    channels: tuple[int, ...] = (64, 128, 128)
    """Output channels (or neurons) of each layer."""
    kernel: int = 7
    padding: int = 2
    pooling: tuple[int, ...] = (2, 1, 2)
    """Size of the max-pooling behind each layer."""
    wb: int | None = 8
    """Bits of a weight in the forward pass."""
    qb: int | None = 10
    """Bits of the synaptic trace Q."""
    pb: int | None = 12
    """Bits of the membrane trace P."""
    rfb: int | None = 2
    """Bits of the refractory state R."""
    sb: int | None = 6
    """Bits of the fixed readout and its feedback."""
    gb: int | None = 10
    """Bits of a gradient: a weight changes in steps of 2^(1 - gb) weight_mult. None: plain SGD with `lr_sgd`."""
    eb: int | None = 6
    """Bits of an error. None: mean squared error, nothing normalized."""
    ub: int | None = 6
    """Bits of the membrane U: steps of 8/(2^(ub - 1) - 1), saturating at 64 (trap B13)."""
    ab: int | None = 6
    """Bits of the readout's output."""
    sig: int | None = 6
    """Bits of a pooled sigmoid that enters the readout."""
    rb: int | None = 16
    """Bits of the random number that rounds a gradient."""
    profile: Literal["release", "paper", "fixed"] = "fixed"
    """Which of the three rows of the module's table."""
    pq_cap: float | None = None
    """Full scale of P and Q as a share of the response to an input that is always on. None: the profile's."""
    lr: float = 1.0
    """Scales the probability of a step, with gb set; not its size (trap B6)."""
    lr_sgd: float = 1e-9
    """Learning rate without gb."""
    lr_div: int | None = None
    """Epochs after which lr halves and lr_sgd falls to a fifth. None: the profile's; 0: never."""
    beta: float = 1.5
    """Steps of a weight that the first weights and readouts span at least."""
    l1: float = 0.001
    """Regularizer of activity; inert where eb is set (trap B14)."""
    l2: float = 0.001
    """Regularizer of silence; inert where eb is set (trap B14)."""
    dropout: float = 0.5
    """Probability that a class score is dropped, per step."""
    tau_mem: tuple[float, float] = (5.0, 35.0)
    """Milliseconds (steps): bounds of the time constants of P, drawn for every input."""
    tau_syn: tuple[float, float] = (5.0, 10.0)
    """The same of Q."""
    tau_ref: float = 1 / 0.35
    """Time constant of the refractory state, in milliseconds (steps)."""
    weight_mult: float = 4e-5
    """wm: what a weight of 1 is worth."""
    lc_ampl: float = 0.5
    """Range of the readout's weights, over the root of their number."""
    burn_in: int = 50
    """Steps up to this index neither learn nor vote."""

    def __post_init__(self):
        problems = list(_problems(self))
        if problems:
            raise ConfigError(problems)

    @property
    def fixed(self) -> bool:
        """Whether the traps of the published code are mended."""
        return self.profile == "fixed"

    @property
    def cap(self) -> float:
        """The cap of P and Q that is used."""
        return self.pq_cap if self.pq_cap is not None else 0.75 if self.profile == "paper" else 1.0

    @property
    def halving(self) -> int:
        """Epochs between two reductions of the rate; 0: none."""
        return self.lr_div if self.lr_div is not None else 60 if self.profile == "paper" else 80

    def rate(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0; it falls where (epoch + 1) mod lr_div is 0. Source: 3.8."""
        drops = (epoch + 1) // self.halving if self.halving else 0
        return self.lr * 0.5**drops if self.gb is not None else self.lr_sgd * 0.2**drops

    @property
    def mask_scale(self) -> float:
        """What a score that is not dropped is multiplied with: p/(1 - p), in `fixed` 1 (trap B11)."""
        return 1.0 if self.fixed else self.dropout / (1 - self.dropout)

    @property
    def drops_in_tests(self) -> bool:
        """Whether scores are dropped in validation and test too (trap B11)."""
        return not self.fixed

    @property
    def jitters_in_tests(self) -> bool:
        """Whether events of validation and test are to be jittered too (trap B12); for whoever reads the events."""
        return not self.fixed

    @property
    def is_integer(self) -> bool:
        """Whether every width is set, so that everything stored is an integer."""
        return all(getattr(self, name) is not None for name in WIDTHS)

    @property
    def master_frac(self) -> int:
        """Fraction bits of the grid of the master weights, in units of wm; with gb."""
        assert self.gb is not None
        return max(self.gb, self.wb or 0) - 1

    def plan(self) -> list[LayerPlan]:
        """Sizes of the layers, first to last; those that come out empty are left to the check."""
        if self.kind == "dense":
            sizes = (self.inputs * math.prod(self.image), *self.channels)
            pairs = zip(sizes, self.channels, strict=False)
            return [LayerPlan((c, 1, 1), (o, 1, 1), (o, 1, 1), kernel=1, padding=0, pool=1) for c, o in pairs]
        shape, plans = (self.inputs, *self.image), []
        for channels, pool in zip(self.channels, self.pooling, strict=True):
            out = tuple(n + 2 * self.padding - self.kernel + 1 for n in shape[1:])
            edge = (pool - 1) // 2
            pooled = tuple((n + 2 * edge - pool) // pool + 1 for n in out)
            plans.append(
                LayerPlan(shape, (channels, *out), (channels, *pooled), self.kernel, self.padding, pool)
            )  # fmt: skip
            shape = plans[-1].pooled
        return plans


def remarks(rule: DecolleRule) -> list[str]:
    """What a user should know about settings that are allowed, one sentence each.

    >>> remarks(DecolleRule(profile="release"))[1]
    'rfb: with 2 bits the refractory state never decays after the first spike, which lowers U by 0.46 for ever (B10)'
    """
    out = []
    if not rule.fixed and rule.wb is not None:
        out.append("first weights: all are zero in this profile, so that learning starts from silence (B9)")
    if not rule.fixed and rule.rfb is not None:
        gamma = 1 - 1 / rule.tau_ref
        stays = max((c for c in range(2**rule.rfb + 1) if round(gamma * c) >= c), default=0)
        if stays:
            drop = gamma * stays * rule.tau_ref / 2**rule.rfb
            out.append(
                f"rfb: with {rule.rfb} bits the refractory state never decays after the first spike, which lowers U by"
                f" {drop:.2f} for ever (B10)"
            )
    if rule.drops_in_tests and rule.dropout:
        out.append("dropout: class scores are dropped in tests too in this profile (B11)")
    return out


def _problems(r: DecolleRule):
    for name, (low, high) in WIDTHS.items():
        bits = getattr(r, name)
        if bits is not None and not low <= bits <= high:
            yield f"{name}: found {bits}; it must be from {low} to {high}, or none to switch the quantizer off"
    if r.tau_ref <= 1:
        yield f"tau_ref: found {r.tau_ref:g}; it must be above 1 ms, the length of a step"
    elif r.ub == 2 and r.tau_ref - 1 <= 4:
        yield (
            "ub: 2 bits cannot represent the threshold: the membrane has steps of 8, refractoriness reaches"
            f" {r.tau_ref - 1:.2f}, so a neuron without input fires at every step; take 3 or more"
        )
    if r.sb is not None and 2 ** (r.sb - 1) <= r.beta:
        yield f"sb: {r.sb} bits have {2 ** (r.sb - 1)} steps up to 1, fewer than beta {r.beta:g}; take more bits"
    for name in ("tau_mem", "tau_syn"):
        low, high = getattr(r, name)
        if not 1 < low <= high:
            yield f"{name}: found {low:g}, {high:g}; both must be above 1 ms, the first not above the second"
    for name, low, high in (("lr", 0, 16), ("lr_sgd", 0, math.inf), ("weight_mult", 0, 1), ("lc_ampl", 0, 64)):
        if not low < getattr(r, name) <= high:
            yield f"{name}: found {getattr(r, name):g}; it must be above {low} and at most {high:g}"
    for name in ("beta", "l1", "l2"):
        if not 0 <= getattr(r, name) < math.inf:
            yield f"{name}: found {getattr(r, name):g}; it must be at least 0"
    if r.pq_cap is not None and not 0 < r.pq_cap <= 1:
        yield f"pq_cap: found {r.pq_cap:g}; it must be above 0 and at most 1"
    if not 0 <= r.dropout < 1:
        yield f"dropout: found {r.dropout:g}; it must be at least 0 and below 1"
    elif r.dropout == 0 and r.profile in ("release", "paper"):
        yield "dropout: 0 multiplies every class score with p/(1 - p) = 0 in this profile; take profile fixed"
    for name in ("classes", "inputs", "kernel"):
        if getattr(r, name) < 1:
            yield f"{name}: found {getattr(r, name)}; it must be at least 1"
    for name in ("padding", "burn_in", "lr_div"):
        if (getattr(r, name) or 0) < 0:
            yield f"{name}: found {getattr(r, name)}; it must be at least 0"
    if r.profile not in ("release", "paper", "fixed"):
        yield f"profile: found '{r.profile}'; there is release, paper, fixed"
    if r.kind not in ("conv", "dense"):
        yield f"kind: found '{r.kind}'; there is conv, dense"
    if not r.channels or min((*r.channels, *r.image)) < 1:
        yield f"channels, image: found {list(r.channels)}, {list(r.image)}; all must be at least 1"
    elif r.kind == "conv" and (len(r.pooling) != len(r.channels) or min(r.pooling) < 1):
        yield f"pooling: found {list(r.pooling)}; each of {len(r.channels)} layers needs a number of at least 1"
    elif r.kind == "conv":
        for i, plan in enumerate(r.plan()):
            if min(plan.pooled[1:]) < 1 or min(plan.out[1:]) < 1:
                yield (
                    f"image: {r.image[0]} x {r.image[1]} pixels are too few for layer {i + 1}: nothing is left of its"
                    f" {plan.shape[1]} x {plan.shape[2]} input behind kernel {r.kernel}, padding {r.padding} and"
                    f" pooling {plan.pool}; take a smaller kernel, less pooling or fewer layers"
                )
                break
