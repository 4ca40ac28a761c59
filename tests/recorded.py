"""What a CUDA graph does, on the CPU: operations are recorded once and played again on the same tensors.

A recording keeps addresses and Python's numbers, as a graph does: it reads the tensors that it read when it was made,
however Python's variables have changed since. Unlike a graph's, its operations are executed while they are recorded;
`Recorder.capture` puts back what they changed.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh", "bincount")
"""Operations that wait for the GPU, or read numbers from the host (lift_fresh: a tensor made of Python's numbers)."""


def _storages(values) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


class Unstopped(TorchDispatchMode):
    """Fails on an operation for which the host would wait for the GPU, or copy from pageable memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype == torch.bool and (name == "index" or args[2].numel() > 1) for t in args[1]
        )
        if name in WAITS or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class _Recording(Unstopped):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.done.append((func, args, kwargs or {}, out))
        return out


class Recorder:
    """In the place of `step.CudaGraph`. `changes`: gives every tensor whose values a step changes."""

    def __init__(self, changes):
        self.changes, self.captures, self.replays, self.eager, self._done = changes, 0, 0, 0, None

    def aside(self, work):
        self.eager += 1
        work()

    def capture(self, work, generator):
        before, state = [(t, t.detach().clone()) for t in self.changes()], generator.get_state()
        recording = _Recording()
        try:
            with recording:
                work()
        finally:
            generator.set_state(state)
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
        self.captures, self._done = self.captures + 1, recording.done
        stays = self.inputs(recording.done) | _storages([t for t, _ in before])
        for t in tree_leaves([out for *_, out in self._done]):
            # Nothing that was computed while recording may be taken for a result.
            if isinstance(t, torch.Tensor) and t.is_floating_point() and not _storages(t) & stays:
                t.detach().fill_(torch.nan)

    @staticmethod
    def inputs(done) -> set[int]:
        """Storages that were there before: read by an operation before any wrote them."""
        made, given = set(), set()
        for _, args, kwargs, out in done:
            read = _storages((args, kwargs))
            given |= read - made
            made |= _storages(out) - read
        return given

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self._done:
                old = _storages((args, kwargs))
                again = func(*args, **kwargs)
                for there, now in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(now, torch.Tensor) and there is not now and not (_storages(there) & old):
                        there.copy_(now)

    def forget(self):
        self._done = None
