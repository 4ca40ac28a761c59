"""What a run computes on."""

import torch

from hwsim.config import ConfigError
from hwsim.network.lif import choose


def compute_device(wanted: str, precision: str = "float32", local: int = 0) -> torch.device:
    """The torch device of a recipe's `compute`. local: number of this process on its machine; each has a GPU.

    Raises `ConfigError` if CUDA is asked where there is none, for tf32 without it,
    for bf16 on a processor that does not multiply it, and for more processes than GPUs.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise ConfigError([f"compute: found cuda, but {why}; use --device cpu, or install a CUDA build of torch"])
    device = torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise ConfigError([
            f"compute: found {local + 1} processes or more for {torch.cuda.device_count()} GPUs; start one a GPU, or "
            "use --device cpu"
        ])  # fmt: skip
    if device.type == "cuda" and local:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(["precision: tf32 is a number format of CUDA devices; on this CPU use float32 or bf16"])
    if precision == "bf16" and device.type == "cpu" and choose(device).name == "cpu":
        from hwsim.network.matrix_ir import PAIRS

        if not PAIRS:
            raise ConfigError(["precision: this processor does not multiply bf16 (no AVX-512 BF16); use float32"])
    return device
