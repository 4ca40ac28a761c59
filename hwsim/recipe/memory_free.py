"""The memory that a run may take: what the machine, its container and the GPU have left."""

import contextlib
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60
"""A limit from here on is none."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free for this process on a device; None where that cannot be known (macOS, Windows).

    CUDA: of the device, and what torch holds unused of it. CPU on Linux: `MemAvailable`, and no more than what the
    control groups of this process leave, in version 2 or 1.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = _available(PROC / "meminfo")
    if available is None:
        return None
    return min([available, *_left(PROC / "self" / "cgroup", CGROUPS)])


def _available(meminfo: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10
    return None


def _left(own: Path, root: Path) -> list[int]:
    """What each control group above this process leaves: its limit less what it uses, without pages of files."""
    out = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                base, names = root, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                base = root / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            group = base / path.strip("/")
            while True:
                out += _of_group(group, *names)
                if group == base or base not in group.parents:
                    break
                group = group.parent
    return out


def _of_group(group: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
        most, used = (int((group / name).read_text()) for name in (limit, usage))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if most < UNLIMITED:
            return [max(0, most - used + int(stat.get(reclaimable, 0)))]
    return []
