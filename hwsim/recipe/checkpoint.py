"""Files of a run that must survive anything: written whole or not at all, checked when read.

Weights are safetensors; what belongs to them (epoch, metrics so far) rides in the same file's header, so that one
rename makes both valid. Nothing here unpickles. torch is imported only where tensors are wanted.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from hwsim.config import RunError

if TYPE_CHECKING:
    import torch

FORMAT = 2
"""Version of the run folder's layout; a folder of another version is refused."""


def write_whole(path: Path, payload: bytes) -> None:
    """Write to a temporary name, flush to disk, rename. An interruption leaves the old file or the new one.

    Raises `OSError` that names the file if it cannot be written, on a full disk for example.
    """
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with part.open("wb") as f:
            f.write(payload)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        e.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of readable JSON."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path, *wanted: str) -> dict:
    """A JSON file of a run; `RunError` names it if it is damaged, of another version, or lacks a wanted key."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError) as e:
        raise RunError(f"{path}: cannot be read ({e}); delete {path.parent} to do this stage again") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise RunError(f"{path}: written in format {found}, this hwsim reads {FORMAT}; use another --runs folder")
    if missing := [key for key in wanted if key not in value]:
        raise RunError(f"{path}: lacks '{missing[0]}': damaged or changed; delete {path.parent} to do this stage again")
    return value


def save_tensors(path: Path, tensors: dict[str, "torch.Tensor"], about: dict) -> str:
    """Save tensors and a JSON-like `about` in one safetensors file; returns the file's sha256."""
    import safetensors.torch

    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    payload = safetensors.torch.save(held, {"hwsim": json.dumps({"format": FORMAT, **about})})
    write_whole(path, payload)
    return hashlib.sha256(payload).hexdigest()


def load_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, "torch.Tensor"], dict]:
    """(tensors, about) of `save_tensors`.

    sha256: what the file must be; None skips this check. Raises `RunError` naming the file if it is missing, truncated,
    changed, or of another version.
    """
    import safetensors.torch

    return _loaded(path, sha256, safetensors.torch.load)


def save_arrays(path: Path, arrays: dict[str, np.ndarray], about: dict) -> None:
    """`save_tensors` of NumPy arrays."""
    held = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    write_whole(path, safetensors.numpy.save(held, {"hwsim": json.dumps({"format": FORMAT, **about})}))


def load_arrays(path: Path, sha256: str | None = None) -> tuple[dict[str, np.ndarray], dict]:
    """`load_tensors` as NumPy arrays."""
    return _loaded(path, sha256, safetensors.numpy.load)


def _loaded(path: Path, sha256: str | None, load) -> tuple[dict, dict]:
    again = f"delete {path.parent} to do this stage again"
    try:
        payload = path.read_bytes()
    except OSError as e:
        raise RunError(f"{path}: cannot be read: {e.strerror}; {again}") from None
    found = hashlib.sha256(payload).hexdigest()
    if sha256 is not None and found != sha256:
        raise RunError(f"{path}: sha256 is {found[:12]}…, but {sha256[:12]}… was written: damaged or changed; {again}")
    try:
        tensors = load(payload)
        with safetensors.safe_open(path, "np") as f:
            about = json.loads((f.metadata() or {}).get("hwsim", "{}"))
    except (safetensors.SafetensorError, ValueError) as e:
        raise RunError(f"{path}: not a whole safetensors file ({e}); {again}") from None
    if about.get("format") != FORMAT:
        raise RunError(f"{path}: written in format {about.get('format')}, this hwsim reads {FORMAT}; train it again")
    return tensors, about


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors in a file that `save_tensors` wrote, without reading them."""
    with safetensors.safe_open(path, "np") as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118 (not a dict)
