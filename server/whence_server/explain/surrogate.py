"""Sparse linear model of what ablations change: LASSO by coordinate descent.

(Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; Friedman, Hastie, Tibshirani,
"Regularization Paths for Generalized Linear Models via Coordinate Descent", 2010, section 2.1.)
The objective and the scaling are those of scikit-learn's `Lasso` behind a `StandardScaler`.
"""

from typing import Any, NamedTuple

import numpy as np

from whence_server.explain.ablation_rows import Kept

ALPHA = 0.01
"""Weight of the sum of absolute coefficients, as in ContextCite."""
MOST_ROUNDS = 10_000
TOLERANCE = 1e-9
"""Largest change of a coefficient in the last round, relative to the largest coefficient."""


class Surrogate(NamedTuple):
    """A linear model of the explained value.

    Attributes:
        weights: weight of each segment.
        bias: value without any segment.
    """

    weights: "np.ndarray[tuple[int], np.dtype[np.float64]]"
    bias: float

    def predict(self, kept: Kept) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """Return the predicted value of each row."""
        predicted: np.ndarray[Any, Any] = kept @ self.weights + self.bias
        return predicted


def fit_surrogate(
    kept: Kept, values: "np.ndarray[Any, Any]", num_tokens: int, alpha: float = ALPHA
) -> Surrogate:
    """Fit a sparse linear model.

    Args:
        kept: the segments that stayed, for each ablation.
        values: value of each ablation.
        num_tokens: number of the span's tokens: values are divided by it, so that `alpha` means
            the same for long spans.
        alpha: weight of the sum of absolute coefficients.
    """
    features = kept.astype(np.float64)
    means, scales = features.mean(0), features.std(0)
    # A segment that stayed or went in every ablation tells nothing.
    tells = scales > 0
    scales = np.where(tells, scales, 1.0)
    standard = (features - means) / scales
    targets = values / num_tokens
    bias = targets.mean()
    coefficients = _descend(standard, targets - bias, alpha)
    weights = coefficients / scales
    return Surrogate(weights * num_tokens, float((bias - means @ weights) * num_tokens))


def _descend(
    features: "np.ndarray[Any, Any]", targets: "np.ndarray[Any, Any]", alpha: float
) -> "np.ndarray[Any, Any]":
    """Minimise |y - X w|^2 / (2 n) + alpha |w|_1, one coefficient after the other.

    Args:
        features: X, whose columns have mean 0, and variance 1 or 0.
        targets: y, with mean 0.
        alpha: weight of the second term.
    """
    num_rows, num_columns = features.shape
    # With the Gram matrix, a change of one coefficient costs a row of it.
    gram = features.T @ features / num_rows
    correlations = features.T @ targets / num_rows
    coefficients = np.zeros(num_columns)
    used = np.flatnonzero(np.diag(gram) > 0)
    for _ in range(MOST_ROUNDS):
        change = 0.0
        for j in used:
            before = coefficients[j]
            pull = correlations[j] + gram[j, j] * before
            after = np.sign(pull) * max(abs(pull) - alpha, 0.0) / gram[j, j]
            if after != before:
                coefficients[j] = after
                correlations -= gram[j] * (after - before)
                change = max(change, abs(after - before))
        if change <= TOLERANCE * np.abs(coefficients).max(initial=0.0):
            break
    return coefficients
