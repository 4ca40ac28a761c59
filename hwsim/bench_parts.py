"""What `hwsim bench --report` measures, in order, and what it is to reach.

A part is a `hwsim bench` command of its own that writes speed-NAME.csv; in its table are one or several measures.
"""

from typing import NamedTuple


class Target(NamedTuple):
    """What a way of a measure is to reach, against its yardstick (the first way) or the best peer."""

    way: str
    speed: float | None = None
    """At least this many times as fast, both with their better allocator."""
    memory: float | None = None
    """At most this share of the yardstick's peak memory, both with the default allocator."""
    against: str = "yardstick"
    """yardstick, or peers: the fastest of them."""


class Part(NamedTuple):
    """One table: its file speed-NAME.csv, the title of its measure, options of `hwsim bench`, and targets."""

    name: str
    title: str
    options: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    peers: bool = False
    """Whether peers that are installed take part."""
    sampled: bool = True
    """Whether --samples applies."""


def _network(what: str, net: str, batch: int, *targets: Target, binary: bool = False) -> Part:
    bits, named = (" 1 bit", "-binary") if binary else ("", "")
    options = ("--what", what, "--net", net, "--batch", str(batch), *(("--binary",) if binary else ()))
    title = f"{'training' if what == 'step' else what}{bits}, {net.upper()}, batch {batch}"
    return Part(f"{what}{named}-{net}-b{batch}", title, options, targets, peers=True)


PARTS = (
    _network("step", "vgg9", 16, Target("fused", 3.0, 0.5), Target("bf16", 3.5), Target("fused", 2.5, against="peers")),
    _network("step", "vgg9", 64, Target("fused", 2.5, against="peers")),
    _network("step", "vgg5", 16, Target("fused", 2.3, against="peers")),
    _network("step", "vgg5", 64, Target("fused", 2.8, 0.4), Target("bf16", 3.3), Target("fused", 2.3, against="peers")),
    _network("inference", "vgg9", 16, Target("fused", 3.0, against="peers"), Target("fused", memory=1.0)),
    _network("inference", "vgg9", 64),
    _network("inference", "vgg5", 16),
    _network("inference", "vgg5", 64),
    _network("inference", "vgg9", 16, Target("fused", 4.0, against="peers"), binary=True),
    Part("digits", "training, digits", ("--what", "digits"), (Target("fused", 2.5),), peers=True),
    Part("chips", "25 chips, digits", ("--what", "chips"), (Target("fused", 3.0), Target("shared", 3.0))),
    Part("integer", "", ("--integer",)),
    Part("bitnet-t50", "BITnet, T = 50", ("--bitnet", "--steps", "50"), sampled=False),
    Part("bitnet-t200", "BITnet, T = 200", ("--bitnet", "--steps", "200"), sampled=False),
)  # fmt: skip
"""All of them. Integer networks are measures by their own names."""
