"""Image data sets: reading the official layouts, fixed splits, normalization, batches."""

import ast
import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hwsim.data.image as image
from hwsim.config import DataError
from hwsim.data.archive import cifar_binary, cifar_pickle, read_idx
from hwsim.data.image import Split, batches, data_folder, load_images, normalize
from hwsim.data.release import CIFAR10, CIFAR100, MNIST, RELEASES, File, Layout
from hwsim.data.unpickle import load_batch

REAL = Path(os.environ.get("HWSIM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
DIGITS_SHA256 = "fabca16d4bb895012958b4b88e426bcaf458c10d792ac945f29286e7ee3c33dc"


# --- a small CIFAR-10 and MNIST in the official layouts -----------------------------------------------------------


def python2_pickle(data, labels, key=b"labels"):
    """A batch as Python 2 and numpy 1 pickled it (protocol 2): byte strings and numpy's old module path."""

    def text(b):
        return b"U" + bytes([len(b)]) + b if len(b) < 256 else b"T" + struct.pack("<I", len(b)) + b

    def number(i):
        return b"K" + bytes([i]) if i < 256 else b"J" + struct.pack("<i", i)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R("
    dtype += number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    state = b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype + b"\x89"
    array += state + text(data.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key) + listed + text(b"batch_label") + text(b"b 1") + b"u."


def images(n, shape, seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, *shape), dtype=np.uint8), random.permutation(np.arange(n) % 10)


def file_of(name, payload):
    return File(name, len(payload), hashlib.md5(payload).hexdigest())


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, payload in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A "cifar10" of 120 + 40 images of 4 x 4; returns a writer of any of its four official forms into a folder."""
    parts = {name: images(n, (3, 4, 4), i) for i, (name, n) in enumerate([("a", 60), ("b", 60), ("t", 40)])}
    forms = {
        "cifar-binary": {
            f"{k}.bin": np.c_[y[:, None], x.reshape(len(x), -1)].astype(np.uint8).tobytes()
            for k, (x, y) in parts.items()
        },
        "cifar-pickle": {k: python2_pickle(x.reshape(len(x), -1), y) for k, (x, y) in parts.items()},
    }
    layouts = []
    for form, files in forms.items():
        folder = {"cifar-binary": "cifar-10-batches-bin", "cifar-pickle": "cifar-10-batches-py"}[form]
        write_tar(tmp_path / f"{form}.tar.gz", folder, files)
        archive = file_of(f"{form}.tar.gz", (tmp_path / f"{form}.tar.gz").read_bytes())
        a, b, t = (file_of(name, payload) for name, payload in files.items())
        layouts.append(Layout(form, (folder, "."), (a, b), (t,), archive))
    release = replace(CIFAR10, shape_CHW=(3, 4, 4), train=120, test=40, validation=20, layouts=tuple(layouts))
    monkeypatch.setitem(RELEASES, "cifar10", release)

    def write(form, to, archived=False):
        to.mkdir(exist_ok=True)
        layout = next(la for la in layouts if la.form == form)
        if archived:
            (to / layout.archive.name).write_bytes((tmp_path / layout.archive.name).read_bytes())
            return to / layout.archive.name
        (to / layout.folders[0]).mkdir()
        for name, payload in forms[form].items():
            (to / layout.folders[0] / name).write_bytes(payload)
        return to / layout.folders[0]

    write.parts = parts
    return write


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(monkeypatch):
    """An "mnist" of 40 + 20 images of 3 x 2: its files by their official names, without checksums."""
    files = {}
    for part, n in (("train", 40), ("t10k", 20)):
        x, y = images(n, (3, 2), n)
        files[f"{part}-images-idx3-ubyte"], files[f"{part}-labels-idx1-ubyte"] = idx_bytes(x), idx_bytes(y)
    a, b, c, d = (File(name) for name in files)
    layout = replace(MNIST.layouts[0], train=(a, b), test=(c, d))
    release = replace(MNIST, shape_CHW=(1, 3, 2), train=40, test=20, validation=10, layouts=(layout,))
    monkeypatch.setitem(RELEASES, "mnist", release)
    return files


def put(folder, files, gz=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in files.items():
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(payload) if gz else payload)


def rows(split):
    """Images and labels of a split as a sorted list of byte strings."""
    return sorted(bytes(x.numpy()) + bytes([int(y)]) for x, y in zip(split.images_NCHW, split.labels_N, strict=True))


# --- digits and splits --------------------------------------------------------------------------------------------


def test_digits_splits_are_1257_180_360_and_never_change():
    d = load_images("digits")
    assert [len(d.train), len(d.validation), len(d.test)] == [1257, 180, 360]
    assert d.classes == 10 and d.shape_CHW == (1, 8, 8)
    assert d.train.images_NCHW.dtype == torch.uint8 and d.train.labels_N.dtype == torch.int64
    assert d.checksum == DIGITS_SHA256


def test_digits_splits_hold_every_image_once_with_its_label():
    from sklearn.datasets import load_digits

    raw, d = load_digits(), load_images("digits")
    grey = [
        bytes(int(v * 255 / 16 + 0.5) for v in x.flatten()) + bytes([y])
        for x, y in zip(raw.images, raw.target, strict=True)
    ]
    assert sorted(rows(d.train) + rows(d.validation) + rows(d.test)) == sorted(grey)


def test_digits_splits_are_stratified():
    d = load_images("digits")
    whole = sum(s.labels_N.bincount() for s in (d.train, d.validation, d.test))
    for split in (d.train, d.validation, d.test):
        assert (split.labels_N.bincount() - whole * len(split) / 1797).abs().max() < 2


def test_digits_constants_are_those_of_its_training_split():
    d = load_images("digits")
    x = d.train.images_NCHW.double() / 255
    assert d.mean == (round(x.mean().item(), 4),) and d.std == (round(x.std(correction=0).item(), 4),)


def test_smaller_limits_lie_within_larger_ones_and_within_the_unlimited_split():
    full, large, small = (load_images("digits", limit=n) for n in (None, 200, 50))
    for name, sizes in (("train", (1257, 200, 50)), ("validation", (180, 29, 10)), ("test", (360, 57, 14))):
        a, b, c = (getattr(d, name) for d in (full, large, small))
        assert (len(a), len(b), len(c)) == sizes
        assert set(rows(c)) <= set(rows(b)) <= set(rows(a))


@pytest.mark.parametrize("limit", [10, 30, 100])
def test_a_limit_keeps_the_classes_balanced(limit):
    for split in (lambda d: d.train, lambda d: d.validation, lambda d: d.test):
        counts = split(load_images("digits", limit=limit)).labels_N.bincount(minlength=10)
        wanted = max(10, round(limit * len(split(load_images("digits"))) / 1257))
        assert counts.sum() == wanted and (counts - wanted / 10).abs().max() <= 1 and counts.min() >= 1


@pytest.mark.parametrize("limit", [9, 0, -5])
def test_a_limit_below_the_number_of_classes_is_refused(limit):
    with pytest.raises(DataError, match=f"limit is {limit}; digits needs at least 10"):
        load_images("digits", limit=limit)


def test_the_test_split_depends_on_no_choice():
    expected = load_images("digits").test
    for fraction in (0, 0.05, 0.5):
        d = load_images("digits", validation_fraction=fraction)
        assert torch.equal(d.test.images_NCHW, expected.images_NCHW)
        assert len(d.validation) == round(fraction * 1437) and len(d.train) + len(d.validation) == 1437


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, 1e-6, 0.9999, float("nan")])
def test_a_fraction_that_leaves_a_split_without_classes_is_refused(fraction):
    with pytest.raises(DataError, match="validation_fraction"):
        load_images("digits", validation_fraction=fraction)


def test_checksum_names_what_is_used():
    sums = [load_images("digits", **kw).checksum for kw in ({}, {"limit": 20}, {"validation_fraction": 0.2})]
    assert len(set(sums)) == 3
    assert load_images("digits", limit=20).checksum == sums[1]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(DataError, match="no image data set 'cifar-10'; did you mean 'cifar10'"):
        load_images("cifar-10")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 60))
def test_every_beginning_of_the_stratified_order_is_stratified(labels, count):
    labels = np.array(labels)
    order = image._stratified_order(labels)
    assert sorted(order) == list(range(len(labels)))
    count = min(count, len(labels))
    chosen, whole = (np.bincount(x, minlength=4) for x in (labels[order[:count]], labels))
    assert np.abs(chosen - whole * count / len(labels)).max() < 2


# --- CIFAR --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("form", ["cifar-binary", "cifar-pickle"])
def test_every_official_form_of_cifar_gives_the_same_data(small_cifar, tmp_path, form, archived):
    small_cifar(form, tmp_path / "data", archived)
    d = load_images("cifar10", data_dir=tmp_path / "data", validation_fraction=0)
    x, y = (np.concatenate([small_cifar.parts[k][i] for k in "ab"]) for i in (0, 1))
    assert torch.equal(d.train.images_NCHW, torch.from_numpy(x)) and torch.equal(d.train.labels_N, torch.from_numpy(y))
    assert np.array_equal(d.test.images_NCHW, small_cifar.parts["t"][0]) and len(d.validation) == 0
    assert not list((tmp_path / "data").rglob("*.part")), "nothing is written beside the data"


def test_default_validation_comes_from_the_training_images(small_cifar, tmp_path):
    small_cifar("cifar-binary", tmp_path / "data")
    d, whole = (load_images("cifar10", data_dir=tmp_path / "data", **kw) for kw in ({}, {"validation_fraction": 0}))
    assert sorted(rows(d.train) + rows(d.validation)) == rows(whole.train)
    assert d.validation.labels_N.bincount().tolist() == [2] * 10


def test_the_folder_itself_may_be_named_as_data_dir(small_cifar, tmp_path):
    folder = small_cifar("cifar-binary", tmp_path / "data")
    assert len(load_images("cifar10", data_dir=folder).test) == 40


def test_data_dir_comes_before_the_environment_and_that_before_the_cache(small_cifar, tmp_path, monkeypatch):
    small_cifar("cifar-binary", tmp_path / "here")
    monkeypatch.setenv("HWSIM_DATA", str(tmp_path / "here"))
    assert len(load_images("cifar10").test) == 40
    assert data_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.setenv("HWSIM_DATA", "")
    assert data_folder().name == "data" and "hwsim" in str(data_folder())


def test_missing_data_say_where_was_looked_what_is_expected_and_what_to_do(tmp_path):
    with pytest.raises(DataError) as e:
        load_images("cifar10", data_dir=tmp_path / "none")
    message = str(e.value)
    assert "\n" not in message
    for word in (
        str(tmp_path / "none"),
        "no such folder",
        "cifar-10-batches-bin",
        "data_batch_5.bin",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "--data-dir",
        "--download",
    ):
        assert word in message


def test_a_missing_batch_is_named(small_cifar, tmp_path):
    (small_cifar("cifar-binary", tmp_path / "data") / "b.bin").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-bin lacks b\.bin\)"):
        load_images("cifar10", data_dir=tmp_path / "data")


def test_a_truncated_batch_is_named_with_both_sizes(small_cifar, tmp_path):
    path = small_cifar("cifar-binary", tmp_path / "data") / "b.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"b\.bin: found 100 bytes, expected 2940"):
        load_images("cifar10", data_dir=tmp_path / "data")


@pytest.mark.parametrize("form", ["cifar-binary", "cifar-pickle"])
def test_a_changed_byte_is_found_with_both_checksums(small_cifar, tmp_path, form):
    path = next(p for p in small_cifar(form, tmp_path / "data").iterdir() if p.stem == "t")
    payload = bytearray(path.read_bytes())
    expected = hashlib.md5(payload).hexdigest()
    payload[200] ^= 1
    path.write_bytes(payload)
    with pytest.raises(DataError) as e:
        load_images("cifar10", data_dir=tmp_path / "data")
    assert str(path) in str(e.value) and expected in str(e.value) and hashlib.md5(payload).hexdigest() in str(e.value)


def test_a_truncated_archive_is_refused(small_cifar, tmp_path):
    path = small_cifar("cifar-pickle", tmp_path / "data", archived=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cifar-pickle\.tar\.gz: found \d+ bytes, expected \d+"):
        load_images("cifar10", data_dir=tmp_path / "data")


def without_archive_checksum(monkeypatch):
    release = RELEASES["cifar10"]
    layouts = tuple(replace(la, archive=File(la.archive.name)) for la in release.layouts)
    monkeypatch.setitem(RELEASES, "cifar10", replace(release, layouts=layouts))


def test_an_archive_that_is_no_archive_or_lacks_a_file_is_refused(small_cifar, tmp_path, monkeypatch):
    path = small_cifar("cifar-binary", tmp_path / "data", archived=True)
    without_archive_checksum(monkeypatch)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match="damaged"):
        load_images("cifar10", data_dir=tmp_path / "data")
    write_tar(path, "cifar-10-batches-bin", {"a.bin": b"", "../b.bin": b""})
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/b\.bin, cifar-10-batches-bin/t\.bin"):
        load_images("cifar10", data_dir=tmp_path / "data")


def test_a_label_out_of_range_is_refused():
    small = replace(CIFAR10, shape_CHW=(3, 1, 1))
    assert cifar_binary(bytes([9, 1, 2, 3]), "x.bin", small)[1].tolist() == [9]
    with pytest.raises(DataError, match=r"x\.bin: found label 10, allowed are 0\.\.9"):
        cifar_binary(bytes([10, 1, 2, 3]), "x.bin", small)
    with pytest.raises(DataError, match="5 bytes, expected a multiple of 4"):
        cifar_binary(bytes(5), "x.bin", small)


def test_cifar100_uses_the_fine_labels():
    small = replace(CIFAR100, shape_CHW=(3, 1, 1))
    table = np.array([[fine % 20, fine, 7, 8, 9] for fine in range(100)], np.uint8)
    x, y = cifar_binary(table.tobytes(), "train.bin", small)
    assert y.tolist() == list(range(100)) and x[0].flatten().tolist() == [7, 8, 9]
    payload = python2_pickle(table[:, 2:], table[:, 1], b"fine_labels")
    assert cifar_pickle(payload, "train", small)[1].tolist() == list(range(100))
    swapped = table[:, [1, 0, 2, 3, 4]].copy()
    twice = table.copy()
    twice[3, 1] = 4
    for wrong, words in ((swapped, "found label 99, allowed are 0..19"), (twice, "not CIFAR-100's")):
        with pytest.raises(DataError, match=words):
            cifar_binary(wrong.tobytes(), "train.bin", small)


def test_a_pickle_without_the_expected_arrays_is_refused():
    small = replace(CIFAR10, shape_CHW=(3, 1, 1))
    data = np.zeros((2, 3), np.uint8)
    for payload, words in (
        (python2_pickle(data, [1, 2, 3]), "'labels' is not a list of 2 labels"),
        (python2_pickle(data[:, :2], [1, 2]), r"'data' is not an array of uint8 \[N, 3\]"),
        (python2_pickle(data, [1, 2], b"other"), "'labels' is not"),
        (python2_pickle(data, [1, 2])[:-9], "not a readable CIFAR batch"),
        (pickle.dumps([1]), "found a pickled list"),
    ):
        with pytest.raises(DataError, match=words):
            cifar_pickle(payload, "batch", small)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_wants_to_run_code_is_refused_before_it_runs(tmp_path, protocol):
    target = tmp_path / "ran"
    payload = pickle.dumps({"data": Hostile(str(target))}, protocol)
    with pytest.raises(DataError, match=r"data_batch_1: this pickle asks for \w+\.open"):
        load_batch(payload, "data_batch_1")
    assert not target.exists()
    pickle.loads(payload)["data"].close()
    assert target.exists(), "the pickle is a real attack"


@pytest.mark.parametrize("name", ["os system", "builtins eval", "numpy load", "numpy.core.multiarray scalar"])
def test_only_what_arrays_need_is_admitted(name):
    module, attribute = name.split()
    with pytest.raises(DataError, match=f"asks for {module}.{attribute},"):
        load_batch(f"c{module}\n{attribute}\n.".encode(), "batch")


# --- MNIST --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "."])
def test_idx_files_are_found_plain_or_gzipped(small_mnist, tmp_path, folder, gz):
    put(tmp_path / folder, small_mnist, gz)
    d = load_images("mnist", data_dir=tmp_path, validation_fraction=0)
    x, y = images(40, (3, 2), 40)
    assert np.array_equal(d.train.images_NCHW[:, 0], x) and np.array_equal(d.train.labels_N, y)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_a_truncated_idx_file_is_named_with_what_was_found(small_mnist, tmp_path, gz):
    put(tmp_path / "mnist", small_mnist, gz)
    path = tmp_path / "mnist" / ("t10k-images-idx3-ubyte" + ".gz" * gz)
    path.write_bytes(path.read_bytes()[:-10])
    found = rf"found {path.stat().st_size} bytes, expected 1648877 \(md5 9fb629c" if gz else r"found 126 bytes, .* 136"
    with pytest.raises(DataError, match=rf"t10k-images-idx3-ubyte.*{found}"):
        load_images("mnist", data_dir=tmp_path)


def test_idx_header_and_counts_are_checked(small_mnist, tmp_path):
    with pytest.raises(DataError, match="starts with 00000801, an idx3 file with 00000803"):
        read_idx(small_mnist["train-labels-idx1-ubyte"], 3, "x")
    with pytest.raises(DataError, match="an idx1 file"):
        read_idx(b"\0\0\x08\x01\0", 1, "x")
    put(tmp_path / "mnist", small_mnist | {"t10k-labels-idx1-ubyte": idx_bytes(np.zeros(7))})
    with pytest.raises(DataError, match=r"found images \[20, 3, 2\] with 7 labels"):
        load_images("mnist", data_dir=tmp_path)
    put(tmp_path / "mnist", {n: small_mnist[n.replace("t10k", "train")] for n in small_mnist})
    with pytest.raises(DataError, match="found 40 test images of mnist, expected 20"):
        load_images("mnist", data_dir=tmp_path)


def test_a_file_of_another_data_set_in_its_place_is_recognized(small_mnist, tmp_path, monkeypatch):
    payload = small_mnist["train-labels-idx1-ubyte"]
    a, b = RELEASES["mnist"].layouts[0].train
    layout = RELEASES["mnist"].layouts[0]
    asked = replace(layout, train=(a, File(b.name, len(payload), "0" * 32)))
    owner = replace(MNIST, name="other", layouts=(replace(layout, train=(file_of("y", payload),)),))
    monkeypatch.setitem(RELEASES, "mnist", replace(RELEASES["mnist"], layouts=(asked,)))
    monkeypatch.setitem(RELEASES, "other", owner)
    put(tmp_path, small_mnist)
    with pytest.raises(DataError, match="this is a file of other"):
        load_images("mnist", data_dir=tmp_path)


# --- the table of releases and the real files ---------------------------------------------------------------------


def test_the_table_of_releases_is_consistent():
    for release in RELEASES.values():
        C, H, W = release.shape_CHW
        assert len(release.mean) == len(release.std) == C
        for layout in release.layouts:
            for files, n in ((layout.train, release.train), (layout.test, release.test)):
                if layout.form == "cifar-binary":
                    heads = 2 if release.classes == 100 else 1
                    assert sum(f.size for f in files) == n * (heads + C * H * W)
                if layout.form == "idx":
                    assert [f.size for f in files] == [16 + n * H * W, 8 + n]
            for file in layout.train + layout.test:
                assert (file.md5 and len(file.md5) == 32) or file.name in ("train.bin", "test.bin")
        for download in release.downloads:
            assert download.folder in {".", *(f for la in release.layouts for f in la.folders)}
            names = {la.archive.name for la in release.layouts if la.archive}
            names |= {f.name + ".gz" for la in release.layouts for f in la.train + la.test}
            assert {f.name for f in download.files} <= names
            assert all(f.size and len(f.md5) == 32 for f in download.files)
    md5s = [f.md5 for r in RELEASES.values() for la in r.layouts for f in la.train + la.test if f.md5]
    assert len(set(md5s)) == len(md5s)


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("mnist", "7f3e307094bb13d88d226fb68fc7bb61ee98860bcc00d2de997f11f7200f13c0"),
        ("fashion-mnist", "ee501883557c844db8d5c8f4eccfd3b00b77a0d757a0d43abd66d203c281530c"),
        ("cifar10", "90ad467236b3c94dc8efe14b90bc6b743bb4216bfed81455da0ba129512a686d"),
    ],
)
def test_the_official_files_give_the_expected_splits(name, checksum):
    try:
        d = load_images(name, data_dir=REAL)
    except DataError as e:
        if "not found in" not in str(e):
            raise
        pytest.skip(f"{name} is not at HWSIM_TEST_DATA or beside the checkout")
    assert d.checksum == checksum
    x = d.train.images_NCHW.float().div_(255)
    assert (x.mean((0, 2, 3)) - torch.tensor(d.mean)).abs().max() < 5e-4


# --- normalization and batches ------------------------------------------------------------------------------------


def test_normalize_subtracts_the_mean_and_divides_by_the_standard_deviation_of_its_channel():
    x = torch.from_numpy(images(5, (3, 4, 4), 0)[0])
    before, mean, std = x.clone(), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    out = normalize(x, mean, std, dtype=torch.float64)
    for c in range(3):
        expected = (x[:, c].numpy().astype(float) / 255 - mean[c]) / std[c]
        assert np.allclose(out[:, c].numpy(), expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(x, before) and normalize(x, mean, std).dtype == torch.float32
    assert torch.equal(normalize(x, mean, std, "cpu", torch.bfloat16), normalize(x, mean, std).to(torch.bfloat16))


def test_normalize_refuses_floats_and_a_wrong_number_of_constants():
    with pytest.raises(DataError, match=r"found torch\.float32 images, expected torch\.uint8"):
        normalize(torch.zeros(1, 1, 2, 2), (0.5,), (0.5,))
    with pytest.raises(DataError, match="3 means and 3 standard deviations for images of 1 channels"):
        normalize(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3)


def numbered(n, device="cpu"):
    """A split in which image i holds i everywhere and has label i."""
    x = torch.arange(n, device=device)
    return Split(x.to(torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous(), x)


@given(st.integers(0, 50), st.integers(1, 20), st.booleans(), st.booleans())
def test_batches_hold_every_image_once_with_its_label(n, size, shuffled, drop_last):
    if drop_last and n < size:
        with pytest.raises(DataError, match=f"{n} images do not fill one batch of {size}"):
            batches(numbered(n), size, drop_last=True)
        return
    got = list(batches(numbered(n), size, torch.Generator().manual_seed(n) if shuffled else None, drop_last))
    labels = torch.cat([y for _, y in got]) if got else torch.empty(0, dtype=torch.int64)
    assert all((x == y[:, None, None, None]).all() for x, y in got)
    kept = n - n % size if drop_last else n
    assert len(labels) == len(labels.unique()) == kept and [len(y) for _, y in got][:-1] == [size] * (len(got) - 1)
    if not shuffled:
        assert labels.tolist() == list(range(kept))


def test_the_generator_alone_decides_the_order():
    def order(seed):
        return torch.cat([y for _, y in batches(numbered(100), 7, torch.Generator().manual_seed(seed))]).tolist()

    assert order(1) == order(1) != order(2)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.cat([y for _, y in batches(numbered(100), 7, generator)]).tolist() for _ in range(2))
    assert first == order(1) and first != second


def test_batch_size_must_be_positive():
    with pytest.raises(DataError, match="batch_size is 0"):
        batches(numbered(5), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_of_a_split_on_cuda_are_those_of_the_cpu():
    split = numbered(20)
    on_cuda = split.to("cuda")
    here, there = (list(batches(s, 6, torch.Generator().manual_seed(3))) for s in (split, on_cuda))
    for (x, y), (u, v) in zip(here, there, strict=True):
        assert u.is_cuda and torch.equal(x, u.cpu()) and torch.equal(y, v.cpu())
        assert torch.allclose(normalize(u, (0.1,), (0.2,)).cpu(), normalize(x, (0.1,), (0.2,)))


# --- lean imports -------------------------------------------------------------------------------------------------


def test_importing_image_data_is_lean():
    """torch itself imports pickle and urllib, so what our modules import at the top is read from their source."""
    folder = Path(image.__file__).parent
    for name in ("image", "archive", "release", "augment"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        imported = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert "hwsim.config" in imported or name == "release"
        lazy = {"sklearn", "urllib", "pickle", "matplotlib", "platformdirs"}
        lazy |= {"hwsim.data.download", "hwsim.data.unpickle"}
        assert not any(i == m or i.startswith(m + ".") for i in imported for m in lazy)
    code = "import sys, hwsim.data.image; print(*{'sklearn', 'matplotlib', 'hwsim.data.download'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder.parents[1])
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
