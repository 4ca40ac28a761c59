"""What a stage's result depends on, as one hash: a finished stage is found again by it, whatever run it lies in."""

from typing import Any

from hwsim.config import content_hash
from hwsim.device.card import load_card
from hwsim.recipe.checkpoint import FORMAT
from hwsim.recipe.coding_settings import Published
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.load import Trained
from hwsim.recipe.settings import Account, Codings, Evaluate, Load, Recipe, Recover, Train


def stage_keys(
    recipe: Recipe, checksum: str, compute: str, loaded: dict[str, Trained], first_weights: dict[str, Trained],
    processes: int = 1,
) -> dict[str, str]:  # fmt: skip
    """Stage → key. checksum: of the data. loaded, first_weights: other runs' networks, by the stage that takes them.

    processes: how many train together.
    """
    keys: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        settings = stage.model_dump(exclude={"start", "of", "run", "init_run"})
        parents: Any = getattr(stage, "start", None) or getattr(stage, "of", None) or []
        if isinstance(stage, Recover) and stage.redraw == "batch":
            del settings["fixed_chips"]
        if isinstance(stage, Evaluate) and stage.spikes == "per-chip":
            del settings["spikes"]  # so that older results are found again
        if isinstance(stage, Load):
            settings["weights"] = [m.sha256 for m in loaded[name].members]
        if name in first_weights:
            settings["init_weights"] = first_weights[name].members[0].sha256
        if isinstance(stage, Account):  # prices are not: the same counts are priced again
            settings = {k: settings[k] for k in ("do", "samples", "window_rows")}
        if isinstance(stage, Published):  # they are: the tables are the stage's own
            settings["card"] = [load_card(c).hash for c in stage.card.split("+")]
        if isinstance(stage, Train | Codings):
            settings |= _shared(recipe, processes)
        above = [(p, keys[p]) for p in ([parents] if isinstance(parents, str) else parents)]
        # A trained network is the same whatever its parent is called; a table names the networks that it measured.
        above = [k for _, k in above] if isinstance(stage, Train | Convert) else above
        keys[name] = _key(recipe, checksum, compute, settings, above)
    return keys


def fresh_key(recipe: Recipe, stage: Train, checksum: str, compute: str, processes: int = 1) -> str:
    """Key of a stage that trains this recipe's network from fresh weights."""
    return _key(recipe, checksum, compute, stage.model_dump(exclude={"start"}) | _shared(recipe, processes), [])


def _shared(recipe: Recipe, processes: int) -> dict[str, int]:
    """What several processes change in a training: nothing, but where each has BNTT statistics of its own."""
    net = recipe.net
    normalizes = net.norm == "bntt" and not (net.is_bitnet or net.is_ordinary)
    return {"local_statistics": processes} if processes > 1 and recipe.statistics == "local" and normalizes else {}


def _key(recipe: Recipe, checksum: str, compute: str, settings: dict, parents: list) -> str:
    device = recipe.device
    shared = {
        "format": FORMAT, "seed": recipe.seed, "net": recipe.net.model_dump(), "data": checksum,
        "augment": recipe.data.augment, "device": device.model_dump(exclude={"card"}),
        "card": load_card(device.card).hash, "compute": compute,
    }  # fmt: skip
    if recipe.precision != "float32":  # written so that older runs are found again
        shared["precision"] = recipe.precision
    return content_hash({"shared": shared, "stage": settings, "parents": parents})
