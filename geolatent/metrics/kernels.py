"""The kernels that differentiate in every way, in place of fused ones, while a map is evaluated."""

from __future__ import annotations

import threading
from types import TracebackType

from torch.backends import cuda, mha

# fused kernels of scaled dot-product attention, on any device: none has forward mode, nor may its
# backward pass be differentiated
_FUSED = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)


class _DifferentiableKernels:
    """Attention by matrix products and softmax, for as long as anybody is inside.

    Both settings are of the process, not of the thread: whoever comes in first notes what they were
    and changes them, whoever leaves last puts them back. So they stay changed while one thread is
    inside, and are as they were when none is. Other threads get the same attention in the meantime,
    but for rounding and speed; settings that they make meanwhile are lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[bool, ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                fused = tuple(enabled() for enabled, _ in _FUSED)
                self._before = (*fused, cuda.math_sdp_enabled(), mha.get_fastpath_enabled())
                self._set(*(False for _ in _FUSED), True, False)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set(*self._before)

    def _set(self, *values: bool) -> None:
        *fused, by_products, fast_path = values
        cuda.enable_math_sdp(by_products)
        for (_, enable), value in zip(_FUSED, fused, strict=True):
            enable(value)
        mha.set_fastpath_enabled(fast_path)


DIFFERENTIABLE_KERNELS = _DifferentiableKernels()
