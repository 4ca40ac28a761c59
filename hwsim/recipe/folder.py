"""A run's folder: one writer at a time, finished stages that are found again by their content, a manifest.

runs/<recipe>-<key>/
    recipe.yaml  manifest.json  metrics.csv  accuracy.csv  chips.csv  energy.csv  sparsity.csv  summary.md  *.png
    <stage>/stage.json                       what the stage was asked (key), its rows, the sha256 of its files; sealed
    <stage>/weights.safetensors              a trained network (resume.safetensors while it trains); of several, each:
                                             weights-chip0.safetensors, weights-shift-1.safetensors, …
    <stage>/trace.safetensors                what a network did on test images, counted

`stage.json` is written last: a stage is finished when it is there. A stage whose key is found in another run of the
same `--runs` folder is taken from there.
"""

import contextlib
import errno
import hashlib
import os
import time
from contextlib import contextmanager
from pathlib import Path

from hwsim.config import RunError, content_hash
from hwsim.recipe.checkpoint import FORMAT, read_json, write_json, write_whole
from hwsim.recipe.progress import Progress

WEIGHTS = "weights*.safetensors"
"""Files of trained networks in a stage's folder."""
TRACE = "trace.safetensors"
"""File of what a network did, in the folder of the stage that counted it."""


class Folder:
    """The folder of one run."""

    def __init__(self, runs: Path, name: str, key: str):
        self.runs, self.path = runs, runs / f"{name}-{key[:8]}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise RunError(
                f"--runs {runs}: cannot be written: {e.strerror}; give a folder that can, with --runs"
            ) from None

    @contextmanager
    def locked(self, progress: Progress):
        """Hold the folder; a second process on the same run waits until the first has finished, and reuses its work."""
        with (self.path / ".lock").open("a+") as lock:
            try:
                if not _try_lock(lock):
                    progress.say(f"{self.path}: another hwsim works on this run; waiting for it")
                    while not _try_lock(lock):
                        time.sleep(0.5)
            except OSError as e:
                if e.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                progress.say(f"{self.path}: this file system has no locks; run no second hwsim on this run")
            for leftover in self.path.glob("*.part*"):  # of a process that was killed
                leftover.unlink()
            yield

    def write(self, name: str, payload: bytes) -> None:
        """A file of the run, whole or not at all."""
        write_whole(self.path / name, payload)

    def stage(self, name: str) -> Path:
        """The folder of a stage, made if need be."""
        path = self.path / name
        path.mkdir(exist_ok=True)
        return path

    def finished(self, stage: str, key: str) -> tuple[dict, Path] | None:
        """(stage.json, the folder it lies in) of a finished stage with this key, here or in another run.

        Raises `RunError` if the stage here is damaged, or its files are not what was written.
        """
        own = self.path / stage / "stage.json"
        if own.exists():
            record = read_stage(own.parent)
            if record["key"] != key:
                raise RunError(f"{own}: belongs to other settings; delete {own.parent} to do this stage again")
            _sweep(own.parent)
            return record, own.parent
        for other in sorted(self.runs.glob("*/*/stage.json")):
            try:
                if read_json(other, "key")["key"] == key:
                    return read_stage(other.parent), other.parent
            except RunError:
                continue  # a damaged stage of another run is that run's matter
        return None

    def finish(self, stage: str, record: dict) -> None:
        """Mark a stage as finished."""
        folder = self.stage(stage)
        files = {p.name: _sha256(p) for p in (*sorted(folder.glob(WEIGHTS)), *folder.glob(TRACE))}
        record = {"format": FORMAT, **record, "files": files}
        write_json(folder / "stage.json", {**record, "seal": content_hash(record)})
        _sweep(folder)


def finished_keys(runs: Path) -> set[str]:
    """The keys of all stages that are finished in the runs of a folder."""
    keys = set()
    for file in runs.glob("*/*/stage.json"):
        with contextlib.suppress(RunError):  # a damaged stage is not finished
            keys.add(read_json(file, "key")["key"])
    return keys


def _sweep(folder: Path) -> None:
    """Drop from a finished stage what only an interrupted one needs."""
    for leftover in {*folder.glob("resume*"), *folder.glob("*.part*")}:  # resume….part… is both
        leftover.unlink()


def read_stage(folder: Path) -> dict:
    """The stage.json of a finished stage. Raises `RunError` if it, or a file that belongs to it, is not as written."""
    path = folder / "stage.json"
    sealed = read_json(path, "key", "rows", "files", "seal")
    record = {k: v for k, v in sealed.items() if k != "seal"}
    if content_hash(record) != sealed["seal"]:
        raise RunError(f"{path}: damaged or changed since it was written; delete {folder} to do this stage again")
    for name, sha256 in record["files"].items():
        path = folder / name
        found = _sha256(path) if path.exists() else None
        if found != sha256:
            what = "is missing" if found is None else f"has sha256 {found[:12]}…, but {sha256[:12]}… was written"
            raise RunError(f"{path}: {what}: damaged or changed; delete {folder} to do this stage again")
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _try_lock(file) -> bool:
    """An exclusive lock that the system drops when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
