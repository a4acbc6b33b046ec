"""Private operators and memory settings for speed: each has a switch, a fall-back, and the same numbers either way."""

import ctypes
import os

import torch
from torch import Tensor, nn

_on = {"onednn_linear": True, "keep_memory": False, "large_pages": False}


def settings() -> dict[str, bool]:
    """Which of them are on in this process: the columns of a run row."""
    return _on | {"onednn_linear": _on["onednn_linear"] and has_onednn_linear()}


def has_onednn_linear() -> bool:
    """Whether this PyTorch has oneDNN's product, a private operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn_linear(on: bool = True) -> None:
    """Let `linear` take oneDNN's product where it can."""
    _on["onednn_linear"] = on


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear`, x (…, I), weight (O, I); by oneDNN up to twice as fast on a CPU without gradients."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if fits and _on["onednn_linear"] and has_onednn_linear():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def keep_memory(on: bool = True) -> bool:
    """Let this process keep the memory of large tensors that it frees, for the next ones (mallopt(3) of glibc).

    By default, and with False, a block above 32 MiB goes back to the kernel, and each new one costs a fault for each of
    its pages. Returns whether the setting took hold; it is not there outside Linux with glibc.
    """
    largest, trim = (2**31 - 1, 2**31 - 1) if on else (32 * 2**20, 64 * 2**20)
    try:
        c_library = ctypes.CDLL(None)
        took_hold = bool(c_library.mallopt(-3, largest) and c_library.mallopt(-1, trim))  # M_MMAP_, M_TRIM_THRESHOLD
    except (OSError, AttributeError, TypeError):
        took_hold = False
    _on["keep_memory"] = on and took_hold
    return took_hold


def use_large_pages(on: bool = True) -> None:
    """Ask PyTorch for pages of 2 MiB under large tensors (Linux). It looks once, at its first large allocation."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(on))
    _on["large_pages"] = on
