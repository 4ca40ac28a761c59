"""Image data sets by name: fixed splits of uint8 images, batches, normalization.

`digits` needs no file and no network and is the offline default; `mnist`, `fashion-mnist`, `cifar10` and `cifar100`
are read from the files that users have (`archive.py`). Splits do not depend on any seed. The test images are the
official ones (digits: a fixed stratified fifth), and no choice looks at them: validation images, for every decision
during training, come out of the training images.

N images, B batch, C channels, H W pixels.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwsim.config import DataError, nearest
from hwsim.data.archive import Part, is_present, read_release
from hwsim.data.release import DIGITS, RELEASES, Release

if TYPE_CHECKING:
    from hwsim.data.download import Progress
    from hwsim.data.image_folder import Pictures

FOLDERS = "imagenet"
"""The data set that lies in one folder a class (`image_folder.py`)."""
NAMES = (*RELEASES, FOLDERS)


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels. `images_NCHW` uint8, or pictures that are read when indexed; `labels_N` int64."""

    images_NCHW: "torch.Tensor | Pictures"
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)

    def first(self, n: int) -> "Split":
        """The first n images, or all if there are fewer."""
        images = self.images_NCHW
        return Split(images[:n] if isinstance(images, torch.Tensor) else images.first(n), self.labels_N[:n])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.images_NCHW.to(device), self.labels_N.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set's three splits, and what a run needs to know of it."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    """Mean of each channel for pixels scaled to 0..1; see `normalize`."""
    std: tuple[float, ...]
    """Standard deviation of each channel for pixels scaled to 0..1."""
    checksum: str
    """sha256 over the images and labels of all three splits: what the run really uses."""

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        C, H, W = self.train.images_NCHW.shape[1:]
        return C, H, W


def data_folder(data_dir: Path | str | None = None) -> Path:
    """Where data sets lie: `data_dir`, else the environment's HWSIM_DATA, else `data` in the user's cache folder."""
    if chosen := data_dir or os.environ.get("HWSIM_DATA"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("hwsim")) / "data"


def load_images(
    name: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    limit: int | None = None,
    validation_fraction: float | None = None,
    progress: "Progress | None" = None,
) -> ImageData:
    """An image data set by name: digits, mnist, fashion-mnist, cifar10, cifar100, or imagenet (class folders).

    data_dir: see `data_folder`; not used for digits.   download: fetch the official files there if they are missing.
    limit: at most this many training images, and of validation and test the same share (at least one image of each
    class); a fixed stratified choice in which smaller limits lie within larger.
    validation_fraction: share of the training images set aside for validation, stratified. None means the usual count:
    180 of digits' 1437, a tenth of the others' official training images. 0 trains on all of them, as the reference
    code did; there is then no validation image to choose anything by.
    Images stay in the official order within each split.

    digits: 1797 images of 8 x 8, grey levels 0..16 stored as round(x 255 / 16): 1257 train, 180 validation, 360 test.
    Raises `DataError`: unknown name, data missing or damaged, a limit or fraction that leaves no usable split.
    """
    if name == FOLDERS:
        from hwsim.data.image_folder import load_folder

        root = data_folder(data_dir)
        return load_folder(name, root / name if (root / name).is_dir() else root, limit, validation_fraction)
    if name not in RELEASES:
        raise DataError(f"there is no image data set '{name}'{nearest(name, NAMES)} (allowed: {', '.join(NAMES)})")
    release = RELEASES[name]
    if limit is not None and limit < release.classes:
        raise DataError(f"limit is {limit}; {name} needs at least {release.classes}, one image of each class")
    held_out = _validation_count(release, validation_fraction)

    if release is DIGITS:
        training, testing = _digits()
    else:
        folder = data_folder(data_dir)
        if download and not is_present(release, folder):
            from hwsim.data.download import download_images

            download_images(name, folder, progress=progress)
        training, testing = read_release(release, folder)

    validation_index, train_index = stratified(training[1], held_out)
    share = 1.0 if limit is None else min(1.0, limit / len(train_index))
    test_index = np.arange(len(testing[1]))
    parts = ((training, train_index), (training, validation_index), (testing, test_index))
    train, validation, test = (_split(part, index, share, release.classes) for part, index in parts)
    checksum = _checksum(train, validation, test)
    return ImageData(name, train, validation, test, release.classes, release.mean, release.std, checksum)


def _validation_count(release: Release, fraction: float | None) -> int:
    if fraction is None:
        return release.validation
    if not 0 <= fraction < 1:
        raise DataError(f"validation_fraction is {fraction}; it must be at least 0 and less than 1")
    count = round(fraction * release.train)
    if (fraction > 0 and count < release.classes) or release.train - count < release.classes:
        raise DataError(
            f"validation_fraction {fraction} makes {count} validation and {release.train - count} training images of"
            f" {release.name}; each needs at least {release.classes}, one of each class"
        )
    return count


def _digits() -> tuple[Part, Part]:
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None], raw.target.astype(np.int64)
    test_index, train_index = stratified(y, DIGITS.test)
    return (x[train_index], y[train_index]), (x[test_index], y[test_index])


def _stratified_order(labels_N: np.ndarray) -> np.ndarray:
    """A fixed shuffle of all positions of which every beginning holds the classes in their proportions, up to rounding.

    The image that comes i-th (0, 1, ...) in its class of n after a shuffle gets the key (i + 1/2) / n; the order is
    that of the keys, ties as shuffled. `RandomState` is frozen by numpy (NEP 19), so the order is the same for ever.
    """
    shuffled = np.random.RandomState(20).permutation(len(labels_N))
    key = np.empty(len(labels_N))
    for label in np.unique(labels_N):
        of_class = np.flatnonzero(labels_N[shuffled] == label)
        key[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return shuffled[np.argsort(key, kind="stable")]


def stratified(labels_N: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A stratified choice of `count` positions, and all the others; each in ascending order."""
    order = _stratified_order(labels_N)
    return np.sort(order[:count]), np.sort(order[count:])


def _split(part: Part, index: np.ndarray, share: float, fewest: int) -> Split:
    images, labels = part
    count = max(fewest, round(share * len(index)))
    if count < len(index):
        index = index[stratified(labels[index], count)[0]]
    return Split(torch.from_numpy(images[index]), torch.from_numpy(labels[index]))


def _checksum(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(str(tuple(split.images_NCHW.shape)).encode())
        digest.update(split.images_NCHW.numpy().reshape(-1))
        digest.update(split.labels_N.numpy().astype("<i8"))
    return digest.hexdigest()


def sent(x: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """A tensor on a device (None is its own); from the CPU to CUDA it is on its way, and nothing waits for it."""
    device = x.device if device is None else torch.device(device)
    pinned = (x.device.type, device.type) == ("cpu", "cuda")
    return (x.pin_memory() if pinned else x).to(device, non_blocking=pinned)


def normalize(
    images_BCHW: torch.Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 pixels as a normalized float tensor: (pixel / 255 - mean) / std, channel by channel.

    mean, std: one number a channel, for pixels scaled to 0..1.   device: where to compute; None is the images' own.
    A `dtype` shorter than float32 is rounded to at the end.
    Raises `DataError` for images that are not uint8, or a number of constants that is not the number of channels.

    >>> normalize(torch.tensor([[[[0, 51]]]], dtype=torch.uint8), (0.2,), (0.1,)).flatten().tolist()
    [-2.0, 0.0]
    """
    C = images_BCHW.shape[1]
    if images_BCHW.dtype != torch.uint8:
        raise DataError(f"normalize: found {images_BCHW.dtype} images, expected torch.uint8 pixels 0..255")
    if len(mean) != C or len(std) != C:
        raise DataError(f"normalize: {len(mean)} means and {len(std)} standard deviations for images of {C} channels")
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    x = sent(images_BCHW, device).to(wide).div_(255)  # Moved as bytes: a quarter of the traffic.
    constants = sent(torch.tensor([mean, std], dtype=wide), x.device)[:, :, None, None]
    return x.sub_(constants[0]).div_(constants[1]).to(dtype)


def batches(
    split: Split, batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images and labels of a split, batch by batch: (uint8 [B, C, H, W], int64 [B]) on the split's device.

    generator: a CPU generator that draws the order (once, when this is called); without one, the split's own order.
    drop_last: leave out a last batch that is not full, as training with batch statistics wants.
    Raises `DataError` when there would be no batch at all because of `drop_last`.
    """
    n = len(split)
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1")
    if drop_last and n < batch_size:
        raise DataError(f"{n} images do not fill one batch of {batch_size}, and drop_last leaves out the rest")
    order = None if generator is None else torch.randperm(n, generator=generator).to(split.labels_N.device)
    end = n - n % batch_size if drop_last else n

    def each() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, end, batch_size):
            piece = slice(start, min(start + batch_size, end))
            chosen = piece if order is None else order[piece]
            yield split.images_NCHW[chosen], split.labels_N[chosen]

    return each()
