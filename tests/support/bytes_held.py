"""Counts the bytes of all tensors that are alive at once, as they come and go: what an allocator
would have to give."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary, weakref


class BytesHeld(TorchDispatchMode):
    """Every storage that an operation takes or makes counts once, from then until nothing refers to
    it any more.

    What a kernel needs inside itself and gives back before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held, self.most = 0, 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tree_map_only(torch.Tensor, self.see, (args, kwargs))
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, made)
        self.most = max(self.most, self.held)
        return made

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = weakref.finalize(storage, self._gone, size)
            self.held += size

    def _gone(self, size: int) -> None:
        self.held -= size
