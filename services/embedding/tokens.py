"""The number of tokens in a text, estimated without a model's tokenizer.

A token is taken to be three bytes of ASCII or one and a half of anything else. English has more
than four bytes to the token, Chinese and Hindi two to three, so prose is overestimated; long runs
of random characters (Base64) may be underestimated.
"""

from __future__ import annotations

import numpy as np


def estimate(text: str) -> int:
    """Estimate the number of tokens in a text.

    Args:
        text: Any text without lone surrogates.
    """
    return -(-int(_thirds(text).sum()) // 3)


def cut(text: str, most_tokens: int) -> tuple[str, int]:
    """Shorten a text to a number of tokens.

    Args:
        text: Any text without lone surrogates.
        most_tokens: The estimate that is allowed.

    Returns:
        As much of the beginning as the estimate allows, and its estimated tokens.
    """
    data = text.encode()
    thirds = np.cumsum(_thirds(text))
    end = int(np.searchsorted(thirds, 3 * most_tokens, side="right"))
    kept = text if end == len(data) else data[:end].decode(errors="ignore")
    return kept, -(-int(thirds[end - 1]) // 3) if end else 0


def _thirds(text: str) -> np.ndarray:
    """Return the thirds of a token that each byte in UTF-8 takes."""
    return 1 + (np.frombuffer(text.encode(), dtype=np.uint8) >= 0x80)  # noqa: PLR2004 - not ASCII
