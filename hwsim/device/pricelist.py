"""The prices of one card, or of several that complete each other, written CARD+CARD."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hwsim.config import CardError, nearest
from hwsim.device.card import load_card
from hwsim.device.crossbar import Crossbar
from hwsim.device.price import Scaling, scaled
from hwsim.device.schema import Card


class Cost(NamedTuple):
    """What one action costs, and who says so."""

    pJ: float
    source: str
    evidence: str
    card: str


class Prices:
    """Prices of cards together. Where several price the same action, have crossbars, or say how memories leak, the last
    one counts.

    to_node_nm, scaling: every price is scaled from its node to this one (`price.scaled`).

    Raises `CardError` if a card has no prices, or the prices belong to several nodes and to_node_nm is not given.
    """

    def __init__(self, cards: Sequence[Card], to_node_nm: float | None = None, scaling: Scaling = "cubic"):
        self.cards, self.to_node_nm, self.scaling = list(cards), to_node_nm, scaling
        for card in cards:
            if card.prices is None:
                raise CardError(f"card {card.name}: gives no prices; take a card that does")
        self.name = "+".join(c.name for c in cards)
        if not any(c.covers for c in cards):
            raise CardError(f"card {self.name}: covers nothing alone, it completes others; take it as CARD+{self.name}")
        self.hash = "+".join(c.hash for c in cards)
        self.covers = {component for c in cards for component in c.covers}
        self.crossbar: Crossbar | None = next((c.crossbar for c in reversed(cards) if c.crossbar), None)
        self.step_time_us = next((c.step_time_us for c in reversed(cards) if c.step_time_us), None)
        by_place = {where: (c, where, power) for c in cards for where, power in (c.static or {}).items()}
        self.static = list(by_place.values())
        self._by_action = {action: (c, price) for c in cards for action, price in c.prices.items()}
        self._one_node()

    @classmethod
    def load(cls, names: str, to_node_nm: float | None = None, scaling: Scaling = "cubic") -> "Prices":
        """Prices of CARD or CARD+CARD (names of shipped cards, or paths)."""
        return cls([load_card(name) for name in names.split("+")], to_node_nm, scaling)

    def _one_node(self) -> None:
        if self.to_node_nm is not None:
            return
        of_a_node = {a: (c, p) for a, (c, p) in self._by_action.items() if not p.is_of_any_node}
        nodes = {p.node_nm or c.node_nm: f"{c.name}: prices.{a}" for a, (c, p) in of_a_node.items()}
        if len(nodes) > 1:
            found = " and ".join(
                f"{where} of {f'{node:g} nm' if node else 'an unknown node'}" for node, where in nodes.items()
            )
            raise CardError(
                f"card {self.name}: {found} do not add up; scale them to one node with --to-node NM (and --scaling "
                "linear, quadratic or cubic), or take cards of one node"
            )

    def of(self, element: str, bits: int = 0, kib: float = 0.0) -> Cost | None:
        """The cost of one action on so many bits, in a memory of so many KiB; None if no card has this price.

        Raises `CardError` if the price says nothing for these bits, or is of an unknown node and has to be scaled.
        """
        if element not in self._by_action:
            return None
        card, price = self._by_action[element]
        try:
            pJ = price.at(bits, kib)
        except KeyError:
            raise CardError(
                f"card {card.name}: prices.{element} is given for {', '.join(map(str, price.pJ_by_bits))} bits, not "
                f"for {bits}; take a network of these, or another card"
            ) from None
        source, node = price.source, price.node_nm or card.node_nm
        if self.to_node_nm not in (None, node) and not price.is_of_any_node:
            if node is None:
                raise CardError(f"card {card.name}: prices.{element} is of an unknown node and cannot be scaled")
            factor = scaled(node, self.to_node_nm, self.scaling)
            pJ, source = pJ * factor, f"{source}; x {factor:.4g}, {node:g} to {self.to_node_nm:g} nm, {self.scaling}"
        return Cost(pJ, source, price.evidence, card.name)

    def missing(self, element: str, layers: Iterable[str]) -> str:
        """The message about a price that these layers need and no card has."""
        names = list(dict.fromkeys(layers))
        return (
            f"card {self.name}: there is no price for '{element}', which {', '.join(names)} need"
            f"{nearest(element, self._by_action)}; add prices.{element}: {{pJ: …, source: …, evidence: …}} to a copy "
            "of the card, or complete it with another, as --card A+B"
        )
