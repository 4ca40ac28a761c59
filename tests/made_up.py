"""Made-up chips, for tests of tables and sentences."""


def chips(adapt: int = 0, **accuracies: list[float]) -> list[dict]:
    """Rows of chips.csv: NETWORK_SCALE=[accuracy of each chip]; in a name __ stands for a hyphen."""
    rows = []
    for name, values in accuracies.items():
        network, _, scale = name.rpartition("_")
        where = {"network": network.replace("__", "-"), "adapt_batches": adapt, "variation_scale": float(scale)}
        rows += [
            {"stage": "evaluate", **where, "chip": chip, "accuracy": accuracy, "images": 100}
            for chip, accuracy in enumerate(values)
        ]
    return rows
