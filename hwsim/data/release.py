"""The image data sets as their authors released them: files, sizes, checksums, addresses, normalization constants.

Facts only. `archive.py` reads the files, `download.py` fetches them, `image.py` makes splits of them.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class File:
    """A file and what must be true of its bytes; None where the official value is not known."""

    name: str
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Layout:
    """One form in which a release lies on disk.

    An idx file lies there as named or with ``.gz`` behind it; its size and md5 are those of the unpacked content.
    """

    form: Literal["cifar-binary", "cifar-pickle", "idx"]
    folders: tuple[str, ...]
    """Folders that may hold the files, inside the data folder; "." is the data folder itself."""
    train: tuple[File, ...]
    """CIFAR: the batches in order. idx: the images, then the labels."""
    test: tuple[File, ...]
    archive: File | None = None
    """The .tar.gz that holds `folders[0]`; read as it lies, never unpacked to disk."""


@dataclass(frozen=True)
class Download:
    """Files to fetch into `folder` (inside the data folder), from the first address that answers."""

    folder: str
    files: tuple[File, ...]
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """An image data set: `train` and `test` official images of `shape_CHW` uint8 pixels in `classes` classes."""

    name: str
    classes: int
    shape_CHW: tuple[int, int, int]
    train: int
    test: int
    validation: int
    """How many of the official training images are set aside for validation unless the user says otherwise."""
    mean: tuple[float, ...]
    """Mean of each channel for pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel for pixels scaled to 0..1."""
    layouts: tuple[Layout, ...] = ()
    downloads: tuple[Download, ...] = ()


TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)

# scikit-learn's load_digits (UCI "Optical Recognition of Handwritten Digits", test part). The constants are those of
# the default training split, rounded to four digits.
DIGITS = Release("digits", 10, (1, 8, 8), train=1437, test=360, validation=180, mean=(0.3049,), std=(0.3758,))

# The field's CIFAR-10 constants; this std is the mean over images of each image's own, smaller than that over all
# pixels (0.247, 0.243, 0.262), and kept so that results compare with the reference code's.
# md5 of the pickles and archives: the authors' page and torchvision. md5 of the .bin files: computed from the pixels,
# labels and order of the official pickles.
CIFAR10_BINARY = File("cifar-10-binary.tar.gz", 170052171, "c32a1d4ab5d03f1284b67883e8d87530")
CIFAR10_PYTHON = File("cifar-10-python.tar.gz", None, "c58f30108f718f92721af3b95e74349a")
CIFAR10 = Release(
    "cifar10",
    10,
    (3, 32, 32),
    train=50000,
    test=10000,
    validation=5000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    layouts=(
        Layout(
            "cifar-binary",
            ("cifar-10-batches-bin", "."),
            train=(
                File("data_batch_1.bin", 30730000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
                File("data_batch_2.bin", 30730000, "5ea93a67294ea407fff1d09f752e9692"),
                File("data_batch_3.bin", 30730000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
                File("data_batch_4.bin", 30730000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
                File("data_batch_5.bin", 30730000, "53f37980c15c3d472c316c40844f3f0d"),
            ),
            test=(File("test_batch.bin", 30730000, "803d5f7f4d78ea53de84dbe85f74fb6d"),),
            archive=CIFAR10_BINARY,
        ),
        Layout(
            "cifar-pickle",
            ("cifar-10-batches-py", "."),
            train=(
                File("data_batch_1", None, "c99cafc152244af753f735de768cd75f"),
                File("data_batch_2", None, "d4bba439e000b95fd0a9bffe97cbabec"),
                File("data_batch_3", None, "54ebc095f3ab1f0389bbae665268c751"),
                File("data_batch_4", None, "634d18415352ddfa80567beed471001a"),
                File("data_batch_5", None, "482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            test=(File("test_batch", None, "40351d587109b95175f43aff81a1287e"),),
            archive=CIFAR10_PYTHON,
        ),
    ),
    downloads=(Download(".", (CIFAR10_BINARY,), TORONTO),),
)

# The md5 of the inner .bin files is not published: size, class counts and the coarse-fine relation are checked.
CIFAR100_BINARY = File("cifar-100-binary.tar.gz", 168513733, "03b5dce01913d631647c71ecec9e9cb8")
CIFAR100_PYTHON = File("cifar-100-python.tar.gz", 169001437, "eb9058c3a382ffc7106e4002c42a8d85")
CIFAR100 = Release(
    "cifar100",
    100,
    (3, 32, 32),
    train=50000,
    test=10000,
    validation=5000,
    # The BNTT and the RRAM/SRAM reference code normalize CIFAR-100 with CIFAR-10's constants; these are its own.
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    layouts=(
        Layout(
            "cifar-binary",
            ("cifar-100-binary", "."),
            train=(File("train.bin", 153700000),),
            test=(File("test.bin", 30740000),),
            archive=CIFAR100_BINARY,
        ),
        Layout(
            "cifar-pickle",
            ("cifar-100-python", "."),
            train=(File("train", None, "16019d7e3df5f24257cddd939b257f8d"),),
            test=(File("test", None, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            archive=CIFAR100_PYTHON,
        ),
    ),
    downloads=(Download(".", (CIFAR100_BINARY,), TORONTO),),
)

# md5 of the .gz files: torchvision and the authors' page. md5 of the content: computed from those files.
MNIST = Release(
    "mnist",
    10,
    (1, 28, 28),
    train=60000,
    test=10000,
    validation=6000,
    mean=(0.1307,),
    std=(0.3081,),
    layouts=(
        Layout(
            "idx",
            ("MNIST/raw", "mnist", "."),
            train=(
                File("train-images-idx3-ubyte", 47040016, "6bbc9ace898e44ae57da46a324031adb"),
                File("train-labels-idx1-ubyte", 60008, "a25bea736e30d166cdddb491f175f624"),
            ),
            test=(
                File("t10k-images-idx3-ubyte", 7840016, "2646ac647ad5339dbf082846283269ea"),
                File("t10k-labels-idx1-ubyte", 10008, "27ae3e4e09519cfbb04c329615203637"),
            ),
        ),
    ),
    downloads=(
        Download(
            "MNIST/raw",
            (
                File("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
                File("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
                File("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
                File("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
            ),
            MNIST_MIRRORS,
        ),
    ),
)

FASHION_MNIST = Release(
    "fashion-mnist",
    10,
    (1, 28, 28),
    train=60000,
    test=10000,
    validation=6000,
    mean=(0.2860,),
    std=(0.3530,),
    layouts=(
        Layout(
            "idx",
            ("FashionMNIST/raw", "fashion_mnist", "."),
            train=(
                File("train-images-idx3-ubyte", 47040016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                File("train-labels-idx1-ubyte", 60008, "9018921c3c673c538a1fc5bad174d6f9"),
            ),
            test=(
                File("t10k-images-idx3-ubyte", 7840016, "8181f5470baa50b63fa0f6fddb340f0a"),
                File("t10k-labels-idx1-ubyte", 10008, "15d484375f8d13e6eb1aabb0c3f46965"),
            ),
        ),
    ),
    downloads=(
        Download(
            "FashionMNIST/raw",
            (
                File("train-images-idx3-ubyte.gz", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                File("train-labels-idx1-ubyte.gz", 29515, "25c81989df183df01b3e8a0aad5dffbe"),
                File("t10k-images-idx3-ubyte.gz", 4422102, "bef4ecab320f06d8554ea6380940ec79"),
                File("t10k-labels-idx1-ubyte.gz", 5148, "bb300cfdad3c16e7a12a480ee83cd310"),
            ),
            FASHION_MIRRORS,
        ),
    ),
)

RELEASES = {r.name: r for r in (DIGITS, MNIST, FASHION_MNIST, CIFAR10, CIFAR100)}
