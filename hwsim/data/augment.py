"""Random crops and flips of a whole batch at once, on the batch's device.

They act in image space, before normalization, so that the border they bring in is black (0), as in the reference
pipelines. Labels never change. B batch, C channels, H W pixels.
"""

import torch
from torch.nn import functional as F

from hwsim.config import DataError, nearest

KINDS = ("none", "crop", "crop-flip")


def random_crop(x_BCHW: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Each image padded by `padding` black pixels on every side and cut back to H x W at its own random place.

    The place is uniform over the (2 padding + 1)^2 possible ones. `generator` may live on the CPU or on x's device;
    the same seed gives the same batch as long as it lives on the same kind of device.
    Source: He et al., arXiv 1512.03385, section 4.2 (4 pixels for CIFAR).
    """
    if padding < 0:
        raise DataError(f"random_crop: padding is {padding} pixels; it must be 0 or more")
    B, _, H, W = x_BCHW.shape
    drawn = torch.randint(0, 2 * padding + 1, (2, B), generator=generator, device=generator.device)
    top_B, left_B = drawn.to(x_BCHW.device)
    # A view of all windows, [B, C, 2p+1, 2p+1, H, W]; indexing copies the chosen one of each image.
    windows = F.pad(x_BCHW, (padding,) * 4).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(B, device=x_BCHW.device), :, top_B, left_B]


def random_flip(x_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored left to right with probability 1/2. `generator` as in `random_crop`."""
    u_B = torch.rand(len(x_BCHW), generator=generator, device=generator.device).to(x_BCHW.device)
    return torch.where((u_B < 0.5)[:, None, None, None], x_BCHW.flip(3), x_BCHW)


def augment(x_BCHW: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """A batch with fresh augmentation: "none", "crop" or "crop-flip" (crop, then flip).

    The crop pads an eighth of the height: 4 of 32 pixels as in the reference pipelines, 3 of 28, 1 of 8. Digits do not
    survive a flip: use "crop" for digits and MNIST.
    Raises `DataError` for another kind.
    """
    if kind not in KINDS:
        raise DataError(f"augment: there is no kind '{kind}'{nearest(kind, KINDS)} (allowed: {', '.join(KINDS)})")
    if kind == "none":
        return x_BCHW
    x_BCHW = random_crop(x_BCHW, x_BCHW.shape[2] // 8, generator)
    return random_flip(x_BCHW, generator) if kind == "crop-flip" else x_BCHW
