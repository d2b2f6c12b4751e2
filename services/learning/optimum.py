"""The one use of scipy: the minimum of a smooth function within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pgcorpus.db.errors import Misuse


def find_minimum(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    bounds: Sequence[tuple[float | None, float | None]],
) -> np.ndarray:
    """Return where a function is least, by a truncated Newton method.

    Args:
        function: Gives value and gradient.
        start: Where the search begins, float64 of shape ``(n,)``.
        bounds: The least and the greatest value of each of the n, None for none.

    Raises:
        Misuse: scipy is not installed.

    Source:
        Nash 1984, "Newton-type minimization via the Lanczos method". Unlike L-BFGS-B it calls no
        BLAS, whose threads cost more than these few parameters where processors are busy.
    """
    try:
        from scipy.optimize import minimize  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise Misuse(
            "learning needs scipy, which is not installed; run: pip install 'pgcorpus[learn]'"
        ) from error
    found = minimize(function, start, jac=True, method="TNC", bounds=bounds)
    return np.asarray(found.x, dtype=np.float64)
