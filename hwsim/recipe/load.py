"""A network that another run has trained: found, checked, and refused where it is not this recipe's network."""

from dataclasses import dataclass
from pathlib import Path

from hwsim.config import ConfigError, RunError, nearest
from hwsim.data.image import ImageData
from hwsim.recipe.checkpoint import read_json, tensor_shapes
from hwsim.recipe.folder import WEIGHTS, read_stage
from hwsim.recipe.resolve import Resolved


@dataclass
class Trained:
    """A network that a stage has left: where its weights lie, and how many epochs it has seen."""

    weights: Path
    sha256: str
    epochs: int


def trained_before(
    name: str, run: str, resolved: Resolved, data: ImageData, shapes: dict[str, tuple[int, ...]]
) -> Trained:
    """The network that stage `name` loads: a stage's folder, or a run's last finished network.

    shapes: of this recipe's network. Raises `RunError` if there is none or it is damaged, `ConfigError` with a line for
    everything in which it is another network.
    """
    folder = _stage_folder(Path(run))
    record = read_stage(folder)
    document, net = resolved.document, record["net"]
    mistakes = []
    for key, mine in resolved.recipe.net.model_dump().items():
        if mine != net[key]:
            sets = " and has as many sets of BNTT statistics" if key == "steps" else ""
            mistakes.append(
                f"{document.where(('net', key))}: net.{key}: found {mine}, but the network in {folder} was trained "
                f"with {net[key]}{sets}; take {net[key]}, or train again"
            )
    stored = tensor_shapes(folder / WEIGHTS)
    others = [n for n in shapes if stored.get(n) != shapes[n]]
    if others and not mistakes:
        C, H, W = data.shape_CHW
        mistakes.append(
            f"{document.where(('data', 'name'))}: data.name: {data.name} has {C}x{H}x{W} images in {data.classes} "
            f"classes, for which {others[-1]} is {_by(shapes[others[-1]])}; in {folder} it is "
            f"{_by(stored.get(others[-1]))}. Take the data that stage {name}'s network was trained on, or train again"
        )
    if mistakes:
        raise ConfigError(mistakes)
    return Trained(folder / WEIGHTS, record["files"][WEIGHTS], record["epochs"])


def _stage_folder(folder: Path) -> Path:
    """The folder itself if it is a stage's, else that of the last network that a run has trained."""
    if (folder / WEIGHTS).exists() and (folder / "stage.json").exists():
        return folder
    stages = {p.parent.name: p.parent for p in folder.glob("*/stage.json") if (p.parent / WEIGHTS).exists()}
    if not stages:
        beside = sorted(p.parent.name for p in folder.parent.glob(f"*/{WEIGHTS}"))
        hint = nearest(folder.name, beside) if (folder / "stage.json").exists() else ""
        raise RunError(f"--from {folder}: no finished network lies there; give a run's or trained stage's folder{hint}")
    order = [n for n in read_json(folder / "manifest.json", "keys")["keys"] if n in stages]
    if not order:
        raise RunError(f"--from {folder}: its manifest.json names no network that lies there; give a stage's folder")
    return stages[order[-1]]


def _by(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape))
