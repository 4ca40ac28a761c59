"""What a device card may say: strict models of the YAML in `devices/`, each number with unit, source and evidence.

Cards are found, read and used in `card.py`.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from hwsim.config import Settings, content_hash, nearest
from hwsim.device.cited import Cited, Text
from hwsim.device.crossbar import Crossbar
from hwsim.device.price import Positive, Price, StaticPower

Component = Literal[
    "synapse", "neuron_arithmetic", "synop", "neuron", "crossbar", "memory", "organization",
]  # fmt: skip
"""Kinds of work: synaptic additions and multiplications; the neuron's; synaptic operations and neuron updates as a chip
counts them; crossbars and their periphery; memory accesses; passes over a layer by the organization of its memory."""
Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=16)]


class LevelRow(Settings):
    """The spread of the cells whose |level| lies within [level_from, level_to]."""

    level_from: float | None = Field(default=None, ge=0, le=1)
    """Smallest |level| of the row, as a fraction of full conductance; null is no limit."""
    level_to: float | None = Field(default=None, ge=0, le=1)
    """Largest |level| of the row, as a fraction of full conductance; null is no limit."""
    sigma_ln: Sigma
    """Standard deviation of ln(factor) at these levels."""

    @pydantic.model_validator(mode="after")
    def _limits_are_in_order(self):
        if None not in (self.level_from, self.level_to) and self.level_from > self.level_to:
            raise ValueError(f"level_from {self.level_from} is above level_to {self.level_to}")
        return self


class Variant(Cited):
    """One of several tables of spread by level; the rows belong to the grid (2k - n)/n of the dorefa quantizer."""

    rows_by_bits: dict[Bits, list[LevelRow]] = Field(min_length=1)
    """For each number of bits a weight may hold, the rows that together name every level of the grid once."""
    defect: str = ""
    """What is wrong with these rows, if they are kept as a record; such rows may skip a level or name it twice."""


class Weights(Cited):
    """How a weight is held by cells, and how the cells spread."""

    cell: Literal["ideal", "rram", "ternary"]
    """What holds a weight: ideal (the number itself), rram (multi-bit cells) or ternary (-1, 0, +1)."""
    quantizer: Literal["dorefa", "xnor", "ternary"] | None = None
    """Rounding of the master weight where the recipe names none."""
    sigma_ln_by_bits: dict[Bits, Sigma] | None = Field(default=None, min_length=1)
    """Standard deviation of ln(factor), the same for all levels, for each number of bits a weight may hold."""
    sigma_ln: Sigma | None = None
    """Standard deviation of ln(factor) of ternary cells."""
    variants: dict[str, Variant] | None = Field(default=None, min_length=1)
    """Tables of spread by level, to choose from."""
    default_variant: str | None = None
    """The variant used where the recipe names none."""

    @pydantic.model_validator(mode="after")
    def _fields_fit_the_cell(self):
        given = {k for k in ("sigma_ln_by_bits", "sigma_ln", "variants") if getattr(self, k) is not None}
        allowed = {"ideal": [set()], "ternary": [{"sigma_ln"}], "rram": [{"sigma_ln_by_bits"}, {"variants"}]}[self.cell]
        quantizers = {"ideal": (None,), "ternary": ("ternary",), "rram": ("dorefa", "xnor")}[self.cell]
        if given not in allowed:
            words = {"ideal": "no spread", "ternary": "sigma_ln", "rram": "either sigma_ln_by_bits or variants"}
            found = ", ".join(sorted(given)) or "none of these"
            raise ValueError(f"cell: {self.cell} wants {words[self.cell]}, found {found}")
        if self.quantizer not in quantizers:
            raise ValueError(f"cell: {self.cell} wants quantizer: {' or '.join(q or 'null' for q in quantizers)}")
        if (self.default_variant is None) != (self.variants is None):
            raise ValueError("variants and default_variant come together")
        if self.variants and self.default_variant not in self.variants:
            raise ValueError(f"default_variant: '{self.default_variant}'{nearest(self.default_variant, self.variants)}")
        return self


class State(Cited):
    """How wide the integers are that a device keeps and computes with."""

    bits: dict[str, Annotated[int, Field(ge=1, le=64)]] = Field(min_length=1)
    """Width by the name that the network's settings have for it: wb weights, gb gradients, eb errors, …"""


class Card(Settings):
    """A device: how it holds weights, how wide its states are, what its actions cost."""

    title: Text
    """What the device is, in one line."""
    weights: Weights | None = None
    """How a weight is held."""
    state: State | None = None
    """How wide states, errors and gradients are."""
    covers: list[Component] = []
    """Kinds of work that the card prices; a kind that it covers must have a price for every action that occurs."""
    includes: str = ""
    """What the prices include and leave out, in a sentence for the reader of a table."""
    node_nm: Positive | None = None
    """Technology node of the prices in nanometer."""
    step_time_us: Positive | None = None
    """Microseconds that a time step takes on the device."""
    crossbar: Crossbar | None = None
    """The arrays onto which layers are mapped."""
    prices: dict[str, Price] | None = Field(default=None, min_length=1)
    """Energy by action: add_fp32, mult_fp32, memory_read, adc_conversion, …"""
    static: dict[Literal["device", "memory"], StaticPower] | None = Field(default=None, min_length=1)
    """Power that flows all the time: of the whole device, or of its memories."""

    _name: str = "(unnamed)"

    @pydantic.model_validator(mode="after")
    def _says_something(self):
        if self.weights is None and self.prices is None and self.state is None:
            raise ValueError("a card needs weights, state or prices")
        of_a_node = any(not p.is_of_any_node for p in (self.prices or {}).values())
        if bool(self.covers) != of_a_node:
            raise ValueError("prices and covers (what they price) come together")
        if ("crossbar" in self.covers) != (self.crossbar is not None):
            raise ValueError("a card that covers crossbar says how in its crossbar block; others have none")
        if of_a_node and self.node_nm is None and "unknown node" not in self.includes:
            raise ValueError("prices belong to a technology node: give node_nm, or say 'unknown node' in includes")
        for where, power in (self.static or {}).items():
            if (where == "device") != (power.mW is not None):
                raise ValueError("static.device gives mW, static.memory nW_per_bit or mW_by_kib")
        return self

    @property
    def name(self) -> str:
        """The file's name without .yaml."""
        return self._name

    @property
    def hash(self) -> str:
        """Names the card by its content; comments and layout of the file do not count."""
        return content_hash(self.model_dump(mode="json"))
