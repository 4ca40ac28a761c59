"""What a device card may say: strict models of the YAML in `devices/`, each number with unit, source and evidence.

Cards are found, read and used in `card.py`.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from hwsim.config import CardError, Settings, content_hash, nearest

Evidence = Literal[
    "measured-array", "measured-chip", "fit-to-measured", "circuit-sim", "synthesis", "pre-silicon",
    "architecture-paper", "assumed",
]  # fmt: skip
Text = Annotated[str, Field(pattern=r"\S")]
Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bits = Annotated[int, Field(ge=1, le=16)]


class Cited(Settings):
    """A block of a card that says where its numbers come from."""

    source: Text
    """Where the numbers stand: DOI and table or figure, or repository, commit and file."""
    evidence: Evidence
    """How the numbers came about."""
    note: str = ""
    """What a user should know about them: doubts, conditions, license."""


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


class Price(Cited):
    """What one action costs."""

    pJ: float = Field(ge=0, allow_inf_nan=False)
    """Energy of one action in picojoule."""


class Card(Settings):
    """A device: how it holds weights, what its actions cost, or both."""

    title: Text
    """What the device is, in one line."""
    weights: Weights | None = None
    """How a weight is held."""
    prices: dict[str, Price] | None = Field(default=None, min_length=1)
    """Energy by action: ac (accumulate of one spike), mac (multiply-accumulate), …"""

    _name: str = "(unnamed)"

    @pydantic.model_validator(mode="after")
    def _says_something(self):
        if self.weights is None and self.prices is None:
            raise ValueError("a card needs weights, prices or both")
        return self

    @property
    def name(self) -> str:
        """The file's name without .yaml."""
        return self._name

    @property
    def hash(self) -> str:
        """Names the card by its content; comments and layout of the file do not count."""
        return content_hash(self.model_dump(mode="json"))

    def price(self, action: str) -> Price:
        """The price of an action, for example "ac"; "ac_pJ" is the same action. Never a silent 0.

        Raises `CardError` when the card does not have it.
        """
        action = action.removesuffix("_pJ")
        prices = self.prices or {}
        if action not in prices:
            raise CardError(
                f"card {self.name}: there is no price for '{action}'{nearest(action, prices)}; add prices.{action}: "
                "{pJ: …, source: …, evidence: …} to a copy of the card, or account with another card"
            )
        return prices[action]
