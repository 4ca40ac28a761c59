"""The three places where randomness enters, each with its own generator derived from (seed, purpose).

Purposes: "initial weights"; "batches" (order, augmentation, spike coding); "chips". Because a generator is derived and
not carried on, an epoch that is repeated after an interruption draws exactly what it would have drawn.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the seed and the purpose alone.

    >>> a, b = generator(1, "chips", 0), generator(1, "chips", 1)
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    False
    """
    text = "/".join(str(p) for p in (seed, *purpose))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator(device=device).manual_seed(number)
