"""Reading a released image data set from disk: official folders or archives in, arrays out, every byte verified.

N images, C channels, H W pixels.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hwsim.config import DataError
from hwsim.data.release import RELEASES, File, Layout, Release

AGAIN = "delete it and get the official file again (--download)"

Part = tuple[np.ndarray, np.ndarray]
"""Images [N, C, H, W] uint8 and labels [N] int64."""


def is_present(release: Release, folder: Path) -> bool:
    """Whether `folder` holds all files of one layout (whatever is in them)."""
    return _find(release, folder) is not None


def read_release(release: Release, folder: Path) -> tuple[Part, Part]:
    """The official training and test part, in official order.

    folder: the data folder; looked in are each layout's folders, then the archives.
    Raises `DataError` when no layout is complete, or when a file's size, checksum or structure is not as released.
    """
    found = _find(release, folder)
    if found is None:
        raise DataError(_missing(release, folder))
    layout, place = found
    try:
        source = _members(layout, place) if place.is_file() else lambda file: _file(layout, place, file)
        parts = tuple(_part(release, layout, source, files) for files in (layout.train, layout.test))
    except OSError as e:
        raise DataError(f"{e.filename or place}: cannot be read: {e.strerror or e}") from None
    for what, (_, labels), expected in zip(("train", "test"), parts, (release.train, release.test), strict=True):
        if len(labels) != expected:
            raise DataError(f"{place}: found {len(labels)} {what} images of {release.name}, expected {expected}")
    return parts[0], parts[1]


def _find(release: Release, folder: Path) -> tuple[Layout, Path] | None:
    """The first complete layout and where it is: a folder, else an archive."""
    for layout in release.layouts:
        for place in (folder / f for f in layout.folders):
            if all(_on_disk(layout, place, file) for file in layout.train + layout.test):
                return layout, place
    for layout in release.layouts:
        if layout.archive and (folder / layout.archive.name).is_file():
            return layout, folder / layout.archive.name
    return None


def _on_disk(layout: Layout, place: Path, file: File) -> Path | None:
    names = (file.name, file.name + ".gz") if layout.form == "idx" else (file.name,)
    return next((place / name for name in names if (place / name).is_file()), None)


def _missing(release: Release, folder: Path) -> str:
    expected, partly = [], ""
    for layout in release.layouts:
        files = layout.train + layout.test
        gz = "[.gz]" if layout.form == "idx" else ""
        names = ", ".join(f.name + gz for f in files)
        expected.append(f"{' or '.join(f for f in layout.folders if f != '.')} with {names}")
        if layout.archive:
            expected.append(layout.archive.name)
        for place in (folder / f for f in layout.folders):
            lacking = [f.name for f in files if not _on_disk(layout, place, f)]
            if len(lacking) < len(files) and not partly:
                partly = f" ({place} lacks {', '.join(lacking)})"
    there = "" if folder.is_dir() else " (there is no such folder)"
    return (
        f"{release.name}: not found in {folder}{there}{partly}; expected there {'; or '.join(expected)};"
        " name the folder that holds it with --data-dir, or fetch it with --download"
    )


def verify(payload: bytes, file: File, where: str) -> None:
    """Compare bytes with a file's released size and md5.

    Raises `DataError` with the found and the expected value.
    """
    if file.size is not None and len(payload) != file.size:
        raise DataError(
            f"{where}: found {len(payload)} bytes, expected {file.size}; truncated or not the official file; {AGAIN}"
        )
    found = hashlib.md5(payload, usedforsecurity=False).hexdigest()
    if file.md5 and found != file.md5:
        raise DataError(
            f"{where}: found md5 {found} ({len(payload)} bytes), expected {file.md5}{_whose(found)};"
            f" it is damaged or not the official file; {AGAIN}"
        )


def _whose(md5: str) -> str:
    """MNIST and Fashion-MNIST have the same file names and sizes; say so when one stands in the other's place."""
    for release in RELEASES.values():
        for layout in release.layouts:
            if md5 in {f.md5 for f in layout.train + layout.test}:
                return f" (this is a file of {release.name})"
    return ""


def _file(layout: Layout, place: Path, file: File) -> tuple[bytes, str]:
    path = _on_disk(layout, place, file)
    assert path is not None, "the layout was found complete"
    if path.suffix != ".gz":
        payload = path.read_bytes()
    else:
        try:
            with gzip.open(path) as f:
                payload = f.read() if file.size is None else f.read(file.size + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise DataError(
                f"{path}: the gzip file is damaged ({e}); found {path.stat().st_size} bytes, expected"
                f" {_official(path.name)}; {AGAIN}"
            ) from None
    verify(payload, file, str(path))
    return payload, str(path)


def _official(name: str) -> str:
    """What is known of the released .gz files of this name (MNIST and Fashion-MNIST share their names)."""
    files = [(r.name, f) for r in RELEASES.values() for d in r.downloads for f in d.files if f.name == name]
    return " or ".join(f"{f.size} (md5 {f.md5}, {owner})" for owner, f in files) or "the official file"


def _members(layout: Layout, archive: Path) -> Callable[[File], tuple[bytes, str]]:
    """Read the wanted members of a .tar.gz into memory; nothing is written to disk."""
    assert layout.archive is not None
    wanted = {f"{layout.folders[0]}/{f.name}": f for f in layout.train + layout.test}
    verify(archive.read_bytes(), layout.archive, str(archive))
    members = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name in wanted and member.isfile() else None
                if content is not None:
                    members[wanted[member.name].name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{archive}: the archive is damaged ({e}); {AGAIN}") from None
    if lacking := sorted(set(wanted) - {f"{layout.folders[0]}/{name}" for name in members}):
        raise DataError(f"{archive}: the archive lacks {', '.join(lacking)}; {AGAIN}")

    def source(file: File) -> tuple[bytes, str]:
        where = f"{archive}: {layout.folders[0]}/{file.name}"
        verify(members[file.name], file, where)
        return members.pop(file.name), where

    return source


def _part(release: Release, layout: Layout, source: Callable[[File], tuple[bytes, str]], files) -> Part:
    if layout.form == "idx":
        (images, where_x), (labels, where_y) = (source(file) for file in files)
        x, y = read_idx(images, 3, where_x), read_idx(labels, 1, where_y)
        if x.shape[1:] != release.shape_CHW[1:] or len(x) != len(y):
            wanted = f"[N, {release.shape_CHW[1]}, {release.shape_CHW[2]}] with N"
            raise DataError(f"{where_x}: found images {list(x.shape)} with {len(y)} labels, expected {wanted}; {AGAIN}")
        return x[:, None], checked_labels(y, release.classes, where_y)
    decode = cifar_binary if layout.form == "cifar-binary" else cifar_pickle
    parts = [decode(*source(file), release) for file in files]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def checked_labels(labels: np.ndarray, classes: int, where: str) -> np.ndarray:
    """Labels [N] as int64. Raises `DataError` when one lies outside 0..classes-1."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        bad = int(labels.max() if labels.max() >= classes else labels.min())
        raise DataError(f"{where}: found label {bad}, allowed are 0..{classes - 1}; {AGAIN}")
    return labels.astype(np.int64)


def cifar_binary(payload: bytes, where: str, release: Release) -> Part:
    """CIFAR's binary version: rows of label bytes (CIFAR-10: label; CIFAR-100: coarse, fine) and 3072 RGB plane bytes.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    heads = 2 if release.classes == 100 else 1
    pixels = int(np.prod(release.shape_CHW))
    if len(payload) % (heads + pixels):
        raise DataError(f"{where}: found {len(payload)} bytes, expected a multiple of {heads + pixels}; {AGAIN}")
    rows = np.frombuffer(payload, np.uint8).reshape(-1, heads + pixels)
    fine = checked_labels(rows[:, heads - 1], release.classes, where)
    if heads == 2:  # No md5 is published for these files; their label structure is what can be checked.
        coarse = checked_labels(rows[:, 0], 20, where)
        counts = np.bincount(fine, minlength=release.classes)
        if len(np.unique(coarse * 100 + fine)) != release.classes or len(np.unique(counts)) != 1:
            raise DataError(f"{where}: its coarse and fine labels are not CIFAR-100's; {AGAIN}")
    return rows[:, heads:].reshape(-1, *release.shape_CHW), fine


def cifar_pickle(payload: bytes, where: str, release: Release) -> Part:
    """CIFAR's Python version: a dict with `data` [N, 3072] uint8 and `labels` (CIFAR-100: `fine_labels`)."""
    from hwsim.data.unpickle import load_batch

    batch = load_batch(payload, where)
    key = b"fine_labels" if release.classes == 100 else b"labels"
    x, y, pixels = batch.get(b"data"), batch.get(key), int(np.prod(release.shape_CHW))
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != pixels:
        raise DataError(f"{where}: its 'data' is not an array of uint8 [N, {pixels}]; {AGAIN}")
    if not isinstance(y, list) or len(y) != len(x) or not all(isinstance(label, int) for label in y):
        raise DataError(f"{where}: its '{key.decode()}' is not a list of {len(x)} labels; {AGAIN}")
    return x.reshape(-1, *release.shape_CHW), checked_labels(np.array(y, np.int64), release.classes, where)


def read_idx(payload: bytes, dims: int, where: str) -> np.ndarray:
    """An idx file of unsigned bytes: 0x0000 08 dims, then `dims` big-endian sizes, then the values.

    Raises `DataError` when the header or the length does not agree.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), 1, "labels").tolist()
    [7, 9]
    """
    head = 4 + 4 * dims
    if payload[:4] != bytes([0, 0, 8, dims]) or len(payload) < head:
        raise DataError(f"{where}: starts with {payload[:4].hex()}, an idx{dims} file with 000008{dims:02x}; {AGAIN}")
    shape = tuple(int(n) for n in np.frombuffer(payload, ">u4", dims, 4))
    size = head + int(np.prod(shape, dtype=object))
    if len(payload) != size:
        raise DataError(f"{where}: found {len(payload)} bytes, its header's {list(shape)} needs {size}; {AGAIN}")
    return np.frombuffer(payload, np.uint8, offset=head).reshape(shape)
