"""The counts of a finished run, in a file that is priced again without the network (and without torch)."""

from pathlib import Path

from hwsim.config import RunError
from hwsim.recipe.checkpoint import load_arrays, save_arrays
from hwsim.recipe.folder import TRACE, read_stage
from hwsim.report.trace import Counts


def save_trace(folder: Path, counts: Counts, about: dict) -> None:
    """Write counts into a stage's folder."""
    arrays, plain = counts.arrays()
    save_arrays(folder / TRACE, arrays, {**about, "counts": plain})


def load_trace(folder: Path) -> Counts:
    """The counts in a finished stage's folder. Raises `RunError` if they are missing or damaged."""
    arrays, about = load_arrays(folder / TRACE, read_stage(folder)["files"][TRACE])
    return Counts.from_arrays(arrays, about["counts"])


def counted_stage(run: Path) -> Path:
    """The folder, inside a run or the run itself, of the stage that counted.

    Raises `RunError` if there is none.
    """
    if not run.is_dir():
        raise RunError(f"{run}: there is no such folder; give a run's, as runs/vat-…")
    folders = [run] if (run / TRACE).is_file() else sorted(p.parent for p in run.glob(f"*/{TRACE}"))
    if not folders:
        raise RunError(
            f"{run}: nothing was counted there (no stage does account); run `hwsim recipe evaluate --from {run}`, "
            "and take the run that it writes"
        )
    return folders[0]


def read_trace(run: Path) -> Counts:
    """The counts of a finished run, or of its stage."""
    return load_trace(counted_stage(run))
