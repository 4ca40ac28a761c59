"""Reading one CIFAR batch pickle without letting it run code.

The official batches are Python 2 pickles of a dict with numpy arrays, lists and byte strings. Such a file needs three
globals; a pickle that asks for any other is refused before that global is looked up.
"""

import io
import pickle

import numpy as np

from hwsim.config import DataError


def _empty_array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """What numpy's `_reconstruct` returns: an array to be filled by the pickle's next step."""
    return np.ndarray(shape, code)


# numpy 2 moved `_reconstruct` and warns at its old path, so the file's names are served from here.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Reader(pickle.Unpickler):
    where: str

    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise DataError(
                f"{self.where}: this pickle asks for {module}.{name}, which no CIFAR batch needs and which could run"
                " code; nothing was run; delete the file and get the official one (--download)"
            )
        return _ADMITTED[module, name]


def load_batch(payload: bytes, where: str) -> dict:
    """The dict of one CIFAR batch pickle; its keys are bytes, as Python 2 wrote them. `where` names it in messages.

    Raises `DataError` on a pickle that asks for anything but numpy arrays, or that is no pickle of a dict.
    """
    reader = _Reader(io.BytesIO(payload), encoding="bytes")
    reader.where = where
    try:
        batch = reader.load()
    except DataError:
        raise
    except Exception as e:  # A damaged pickle can raise nearly anything.
        raise DataError(f"{where}: not a readable CIFAR batch ({type(e).__name__}: {e})") from None
    if not isinstance(batch, dict):
        raise DataError(f"{where}: found a pickled {type(batch).__name__}, expected the dict of a CIFAR batch")
    return batch
