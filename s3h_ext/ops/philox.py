"""Counter-based random numbers: every draw is a pure function of its address.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
maps a 128-bit counter and a 64-bit key to four 32-bit words. Draws are addressed, not
consumed, so they do not depend on the batch, the worker, the device or earlier draws.
This makes resumed and multi-process runs exact.

    key     = (seed, epoch)
    counter = (index low 32 bits, index high 32 bits, view | stream << 24, block)

Block ``b`` holds the draws ``4b .. 4b + 3``. All arithmetic is 64-bit integer
arithmetic modulo 2**64, so every device gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["philox4x32", "philox_uniform", "philox_words"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK32 = 0xFFFFFFFF
_MASK24 = 0xFFFFFF


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the ten rounds of Philox4x32 on 32-bit words held in int64 tensors.

    Args:
        counter: Four int64 tensors of one broadcastable shape, values in [0, 2**32).
        key: Two integers in [0, 2**32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2**32).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> words = philox4x32((zero, zero, zero, zero), (0, 0))
        >>> [f"{int(word):08x}" for word in words]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products wrap modulo 2**64; the shift then copies the sign bit into the
        # upper half, which the mask removes again.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32).bitwise_and_(_MASK32) ^ c1 ^ k0,
            product1 & _MASK32,
            (product0 >> 32).bitwise_and_(_MASK32) ^ c3 ^ k1,
            product0 & _MASK32,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _MASK32
        k1 = (k1 + _KEY_STEPS[1]) & _MASK32
    return c0, c1, c2, c3


def philox_words(
    *,
    seed: int,
    epoch: int,
    index: Tensor,
    view: Tensor | int,
    stream: int = 0,
    draws: int,
) -> Tensor:
    """Draw 32-bit words addressed by (seed, epoch, index, view, stream).

    Args:
        seed: First key word, in [0, 2**32).
        epoch: Second key word, in [0, 2**32).
        index: Sample indices, int64 ``[N]`` (any shape).
        view: View numbers, int64 ``[N]`` (broadcast against ``index``) or one integer;
            only the low 24 bits are used.
        stream: Number of an independent stream of draws, in [0, 256).
        draws: Words per address; word ``d`` is the same for every ``draws > d``.

    Returns:
        int64 ``[N, draws]``, values in [0, 2**32).

    Raises:
        TypeError: ``index`` or ``view`` is not int64.
        ValueError: an integer is out of its range.
    """
    _check_range("seed", seed, 1 << 32)
    _check_range("epoch", epoch, 1 << 32)
    _check_range("stream", stream, 1 << 8)
    if draws < 0:
        raise ValueError(f"draws: expected at least 0, got {draws}")
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected an int64 tensor, got {index.dtype}")
    if isinstance(view, Tensor):
        if view.dtype != torch.int64:
            raise TypeError(f"view: expected an int64 tensor or int, got {view.dtype}")
        view_word = (view & _MASK24) | (stream << 24)
    else:
        _check_range("view", view, 1 << 24)
        view_word = torch.full_like(index, view | (stream << 24))
    blocks = torch.arange(-(-draws // 4), device=index.device)
    index = index.unsqueeze(-1)
    words = philox4x32(
        (index & _MASK32, (index >> 32) & _MASK32, view_word.unsqueeze(-1), blocks),
        (seed, epoch),
    )
    return torch.stack(words, dim=-1).flatten(-2)[..., :draws]


def philox_uniform(
    *,
    seed: int,
    epoch: int,
    index: Tensor,
    view: Tensor | int,
    stream: int = 0,
    draws: int,
) -> Tensor:
    """Draw uniforms in [0, 1) addressed by (seed, epoch, index, view, stream).

    A uniform is the upper 24 bits of its word times 2**-24: exact in float32, never 1.
    Arguments and errors are those of :func:`philox_words`.

    Returns:
        float32 ``[N, draws]`` on the device of ``index``.

    Example:
        >>> index = torch.arange(3)
        >>> both = philox_uniform(seed=0, epoch=1, index=index, view=0, draws=2)
        >>> last = philox_uniform(seed=0, epoch=1, index=index[2:], view=0, draws=2)
        >>> torch.equal(both[2:], last)
        True
    """
    words = philox_words(
        seed=seed, epoch=epoch, index=index, view=view, stream=stream, draws=draws
    )
    return (words >> 8).to(torch.float32).mul_(2.0**-24)


def _check_range(name: str, value: int, end: int) -> None:
    if not 0 <= value < end:
        raise ValueError(f"{name}: expected 0 <= {name} < {end}, got {value}")
