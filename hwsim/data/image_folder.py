"""Images in one folder a class, as ImageNet is unpacked: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg.

Pictures are opened when a batch asks for them, so that memory does not grow with their number: their smaller side is
scaled to 256 pixels (bilinear), then the middle 224 x 224 are taken, red, green and blue. val holds the test images;
validation images come out of train, as elsewhere.

N images, B batch, H W pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hwsim.config import DataError
from hwsim.data.image import ImageData, Split, stratified

SHORT_PX, CROP_PX = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The field's constants of ImageNet."""
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files that are indexed like a uint8 tensor [N, 3, 224, 224]."""

    files: tuple[Path, ...]
    device: torch.device = torch.device("cpu")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, 3, 224, 224]."""
        return len(self.files), 3, CROP_PX, CROP_PX

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: slice | torch.Tensor) -> torch.Tensor:
        """A batch, read: uint8 [B, 3, 224, 224]."""
        if isinstance(which, slice):
            return self.read(self.files[which])
        return self.read([self.files[int(i)] for i in which])

    def first(self, n: int) -> "Pictures":
        """The first n, not read yet."""
        return Pictures(self.files[:n], self.device)

    def read(self, files: Sequence[Path]) -> torch.Tensor:
        """These pictures, uint8 [B, 3, 224, 224]. Raises `DataError` naming a file that is no picture."""
        if not files:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8, device=self.device)
        return torch.from_numpy(np.stack([picture(f) for f in files])).to(self.device)

    def to(self, device: torch.device | str) -> "Pictures":
        """The same pictures, read to another device."""
        return Pictures(self.files, torch.device(device))


def picture(file: Path) -> np.ndarray:
    """One picture, uint8 [3, 224, 224]: smaller side to 256, middle 224 x 224.

    Source: the usual evaluation pipeline of ImageNet networks; sides round as there, the long one down.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise DataError(f"{file}: cannot be read as a picture ({e}); delete it or get it again") from None
    W, H = image.size
    short = min(W, H)
    image = image.resize((SHORT_PX * W // short, SHORT_PX * H // short), Image.Resampling.BILINEAR)
    W, H = image.size
    left, top = round((W - CROP_PX) / 2), round((H - CROP_PX) / 2)
    return np.asarray(image)[top : top + CROP_PX, left : left + CROP_PX].transpose(2, 0, 1)


def listed(folder: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """(files, labels [N], names of the classes) of a folder with one folder a class, all in alphabetical order.

    Raises `DataError` for a folder that is missing, has no class folders, or a class without pictures.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; one folder a class is expected in it; use --data-dir")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"{folder}: has no class folders; expected {folder / 'CLASS' / 'PICTURE.jpg'}")
    files, labels = [], []
    for label, name in enumerate(classes):
        own = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not own:
            raise DataError(f"{folder / name}: holds no picture ({', '.join(SUFFIXES)})")
        files += own
        labels += [label] * len(own)
    return files, np.array(labels, dtype=np.int64), classes


def train_and_val(folder: Path) -> tuple[tuple[list[Path], np.ndarray], tuple[list[Path], np.ndarray], int]:
    """((files, labels) of train, the same of val, classes). Raises `DataError` where their classes differ."""
    train, train_labels, classes = listed(folder / "train")
    val, val_labels, others = listed(folder / "val")
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise DataError(f"{folder}: train and val differ in their classes, among them {', '.join(odd[:3])}")
    return (train, train_labels), (val, val_labels), len(classes)


def load_folder(
    name: str, folder: Path, limit: int | None = None, validation_fraction: float | None = None
) -> ImageData:
    """A data set of class folders by the rules of `load_images`; a tenth of train is set aside for validation.

    checksum: over names, sizes and labels; what lies in the files is too much to hash.
    Raises `DataError`: folders missing or different, a limit or fraction that leaves a class without an image.
    """
    (train, train_labels), (val, val_labels), classes = train_and_val(folder)
    held_out = round((0.1 if validation_fraction is None else validation_fraction) * len(train))
    if limit is not None and limit < classes:
        raise DataError(f"limit is {limit}; {name} needs at least {classes}, one image of each class")
    if not 0 <= held_out <= len(train) - classes or 0 < held_out < classes:
        raise DataError(f"{folder}: {len(train)} training images, of which {held_out} for validation: too few of them")
    validation_index, train_index = stratified(train_labels, held_out)
    share = 1.0 if limit is None else min(1.0, limit / len(train_index))
    parts = ((train, train_labels, train_index), (train, train_labels, validation_index))
    digest, splits = hashlib.sha256(), []
    for files, labels, index in (*parts, (val, val_labels, np.arange(len(val)))):
        count = max(classes, round(share * len(index)))
        if count < len(index):
            index = index[stratified(labels[index], count)[0]]
        chosen = [files[i] for i in index]
        digest.update(_fingerprint(chosen, labels[index], folder))
        splits.append(Split(Pictures(tuple(chosen)), torch.from_numpy(labels[index])))
    return ImageData(name, *splits, classes, MEAN, STD, digest.hexdigest())


def _fingerprint(files: Sequence[Path], labels: Sequence[int], root: Path) -> bytes:
    digest = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0{label}\n".encode())
    return digest.digest()
