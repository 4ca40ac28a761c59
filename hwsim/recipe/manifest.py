"""What a run was: command, versions, machine, backend and why. All that may differ between equal runs lies here."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from hwsim import __version__
from hwsim.network.lif import Backend

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "numba",
    "pydantic",
    "safetensors",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "triton",
)


def versions() -> dict[str, str]:
    """Versions of hwsim, Python and what hwsim computes with; packages that are absent are left out."""
    found = {"hwsim": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the checkout that hwsim runs from, with "+" if it has changes; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "-C", root, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def machine(device: torch.device, backend: Backend, processes: int = 1) -> dict:
    """The machine and what computes on it."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "backend": backend.name,
        "backend_reason": backend.reason,
    }


def command(processes: int = 1) -> str:
    """The command line of this process, or of the `processes` that run it together."""
    here = os.environ.get("LOCAL_WORLD_SIZE", str(processes))
    program = ["hwsim"] if processes == 1 else ["torchrun", "--nproc-per-node", here, "-m", "hwsim"]
    return shlex.join([*program, *sys.argv[1:]])
