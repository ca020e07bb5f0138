"""How much memory a computation's tensors take at most, counted exactly and on any machine.

Counted is what is alive after each operation of PyTorch. What an operation needs within itself is not seen.
"""

from __future__ import annotations

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts what is made inside of it: `with LiveMemory() as memory: ...; memory.peak_bytes`.

    Attributes:
        peak_bytes: the most that was alive at once of tensors made since, 0 if none was.
    """

    def __init__(self):
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def alive_bytes(self) -> int:
        """How much of what was made is alive now."""
        return sum(size for storage, size in self._alive.values() if not storage.expired())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(x)._cdata for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if _is_tensor(tensor) and _storage(tensor)._cdata not in given:
                storage = _storage(tensor)
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return made


def _is_tensor(x) -> bool:
    return hasattr(x, "untyped_storage")


def _storage(tensor):
    return tensor.untyped_storage()
