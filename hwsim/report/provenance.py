"""Where the prices of an energy table come from: every price that was used, with its source."""

from hwsim.device.price import Price, StaticPower
from hwsim.device.pricelist import Prices
from hwsim.report.action import Definitions
from hwsim.report.energy import actions, static_rows
from hwsim.report.trace import Counts

COLUMNS = (
    "card", "element", "price_lowest", "price_highest", "unit", "law", "node_nm", "evidence", "source", "used_for",
    "note",
)  # fmt: skip
LAWS = {
    "pJ": "one number", "pJ_per_bit": "per bit", "pJ_by_bits": "by bits", "pJ_by_width": "by width",
    "by_capacity": "by capacity", "adc_survey": "by resolution", "mW": "one number", "nW_per_bit": "per bit",
    "mW_by_kib": "by capacity",
}  # fmt: skip
"""Form of a price on a card → what it depends on."""


def price_rows(counts: Counts, prices: Prices, definitions: Definitions) -> list[dict]:
    """Rows of report-prices.csv: each price that an action of the network used.

    price_lowest, price_highest: of one action in pJ, over the sizes that occur (scaled to another node if the prices
    are); of static power in mW. used_for: component and action, as in energy.csv.
    """
    used: dict[tuple[str, str], dict] = {}
    of_card = {c.name: c for c in prices.cards}

    def use(card: str, element: str, value: float, unit: str, what: str, said: Price | StaticPower, source: str):
        (law,) = [text for form, text in LAWS.items() if getattr(said, form, None) is not None]
        any_node = isinstance(said, Price) and said.is_of_any_node
        node = None if any_node else said.node_nm or of_card[card].node_nm
        row = used.setdefault((card, element), {
            "card": card, "element": element, "law": law, "price_lowest": value, "price_highest": value, "unit": unit,
            "used_for": {}, "node_nm": "" if node is None else node, "source": source, "evidence": said.evidence,
            "note": " ".join(said.note.split()),
        })  # fmt: skip
        row["price_lowest"], row["price_highest"] = min(row["price_lowest"], value), max(row["price_highest"], value)
        row["used_for"][what] = None

    for a in actions(counts, prices, definitions):
        for element, bits in a.parts:
            cost = prices.of(element, bits, a.kib)
            said = of_card[cost.card].prices[element]
            use(cost.card, element, cost.pJ, "pJ", f"{a.component} {a.action}", said, cost.source)
    for r in static_rows(counts, prices, definitions):
        said = of_card[r["card"]].static[r["component"]]
        milliwatt = r["unit_energy_pj"] / 1e9
        use(r["card"], f"static {r['component']}", milliwatt, "mW", "static leakage", said, said.source)
    return [{**row, "used_for": ", ".join(row["used_for"])} for row in used.values()]
