"""What a run computes on."""

import torch

from hwsim.config import ConfigError


def compute_device(wanted: str, precision: str = "float32") -> torch.device:
    """The torch device of a recipe's `compute`.

    Raises `ConfigError` if CUDA is asked where there is none, and for tf32 without it.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise ConfigError([f"compute: found cuda, but {why}; use --device cpu, or install a CUDA build of torch"])
    device = torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(["precision: tf32 is a number format of CUDA devices; on this CPU use float32 or bf16"])
    return device
