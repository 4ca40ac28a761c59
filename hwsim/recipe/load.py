"""Networks that stages have trained: where they lie, and, of another run, whether they are this recipe's network."""

from dataclasses import dataclass
from pathlib import Path

from hwsim.config import ConfigError, RunError, nearest
from hwsim.data.image import ImageData
from hwsim.recipe.checkpoint import read_json, tensor_shapes
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.folder import read_stage
from hwsim.recipe.resolve import Resolved
from hwsim.recipe.settings import Net, SramSettings


@dataclass(frozen=True)
class Member:
    """One network of a stage: its weights, and the chip or the shift that it is for (None: any chip, no shift)."""

    weights: Path
    sha256: str
    chip: int | None = None
    shift_bit: int | None = None


@dataclass(frozen=True)
class Trained:
    """What a stage has left: one network, one for each fixed chip, or one for each shift of an ensemble."""

    members: tuple[Member, ...]
    epochs: int
    sram: SramSettings | None = None
    """The SRAM part of its layers on the device; None is RRAM alone."""
    masked: bool = False
    """Whether the SRAM part is pruned."""
    is_float: bool = False
    """Whether its weights are plain numbers, in no device."""
    conversion: Convert | None = None
    """How it was converted into spikes."""

    @classmethod
    def of_record(cls, folder: Path, record: dict) -> "Trained":
        """From a finished stage's folder and stage.json."""
        members = tuple(
            Member(folder / m["file"], record["files"][m["file"]], m["chip"], m["shift_bit"]) for m in record["members"]
        )
        sram = SramSettings(**record["sram"]) if record["sram"] else None
        # Records older than conversion say nothing of it.
        conversion = Convert(**record["conversion"]) if record.get("conversion") else None
        return cls(members, record["epochs"], sram, record["masked"], record.get("is_float", False), conversion)

    def member(self, chip: int | None, shift_bit: int | None) -> Member:
        """The network for a chip and shift: that one, or the only one that there is for any."""
        fits = [m for m in self.members if m.chip in (None, chip) and m.shift_bit in (None, shift_bit)]
        if not fits:
            raise RunError(f"{self.folder}: holds no network for chip {chip}, shift {shift_bit}")
        return fits[0]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.members[0].weights.parent

    @property
    def shifts(self) -> list[int | None]:
        """The shifts of its networks, in order; more than one is an ensemble."""
        return list(dict.fromkeys(m.shift_bit for m in self.members))

    @property
    def chips(self) -> set[int] | None:
        """The chips that it has networks for; None is any."""
        return None if self.members[0].chip is None else {m.chip for m in self.members if m.chip is not None}


def trained_before(
    name: str, run: str, resolved: Resolved, data: ImageData, shapes: dict[str, tuple[int, ...]]
) -> tuple[Trained, dict]:
    """(network, stage.json) that stage `name` loads: a stage's folder, or a run's last finished network.

    shapes: of this recipe's network. Raises `RunError` if there is none or it is damaged, `ConfigError` with a line for
    everything in which it is another network.
    """
    folder = stage_folder(Path(run))
    record = read_stage(folder)
    document, net = resolved.document, record["net"]
    mistakes = []
    # A bitnet's weights are the same whatever ran its steps; runs that are older than a setting had its default.
    # Neither do those without normalization depend on the steps, nor trained weights on those that they began with.
    asked = resolved.recipe.net
    free = {"gain", *(("steps", "surrogate", "memory", "segment") if asked.is_bitnet else ())}
    free |= {"steps"} if asked.norm == "none" else set()
    for key, mine in asked.model_dump(exclude=free).items():
        theirs = net.get(key, Net.model_fields[key].default)
        if mine != theirs:
            sets = " and has as many sets of BNTT statistics" if key == "steps" else ""
            mistakes.append(
                f"{document.where(('net', key))}: net.{key}: found {mine}, but the network in {folder} was trained "
                f"with {theirs}{sets}; take {theirs}, or train again"
            )
    trained = Trained.of_record(folder, record)
    stored = tensor_shapes(trained.members[0].weights)
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
    return trained, record


def stage_folder(folder: Path) -> Path:
    """The folder itself if it is a finished network's, else that of the last network that a run has trained."""
    if _has_network(folder):
        return folder
    stages = {p.parent.name: p.parent for p in folder.glob("*/stage.json") if _has_network(p.parent)}
    if not stages:
        beside = sorted({p.parent.name for p in folder.parent.glob("*/weights*.safetensors")})
        hint = nearest(folder.name, beside) if (folder / "stage.json").exists() else ""
        raise RunError(f"--from {folder}: no finished network lies there; give a run's or trained stage's folder{hint}")
    order = [n for n in read_json(folder / "manifest.json", "keys")["keys"] if n in stages]
    if not order:
        raise RunError(f"--from {folder}: its manifest.json names no network that lies there; give a stage's folder")
    return stages[order[-1]]


def _has_network(folder: Path) -> bool:
    return (folder / "stage.json").exists() and any(folder.glob("weights*.safetensors"))


def _by(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape))
