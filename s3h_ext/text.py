"""Text for messages: untrusted values, and names that are not UTF-8."""

from __future__ import annotations

__all__ = ["describe_value", "printable"]


def describe_value(value: object) -> str:
    """Return ``value`` for an error message: short, and fast to format.

    Example:
        >>> describe_value(7), describe_value([[7]])
        ('7', 'list')
    """
    if isinstance(value, int):
        # Python refuses to print integers of thousands of digits.
        bits = value.bit_length()
        return str(value) if bits <= 64 else f"an integer of {bits} bits"
    if value is None or isinstance(value, float):
        return str(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    return type(value).__name__


def printable(text: object) -> str:
    r"""Return text that can be encoded as UTF-8.

    Non-UTF-8 bytes in file names are escaped; nothing else changes.

    Example:
        >>> import os
        >>> printable(os.fsdecode(b"caf\xe9.jpg"))
        'caf\\udce9.jpg'
    """
    return str(text).encode(errors="backslashreplace").decode()
