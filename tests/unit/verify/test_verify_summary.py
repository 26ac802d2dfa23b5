"""The figures of a run."""

from array import array

import numpy as np
import pytest

from kyc_pipeline.verify.summary import percentile


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0])
def test_a_percentile_is_the_nearest_rank(share: float) -> None:
    generator = np.random.default_rng(7)
    for size in range(1, 120):
        values = generator.exponential(300, size)
        expected = np.quantile(values, share, method="inverted_cdf")
        assert percentile(array("d", values), share) == expected


def test_no_values_have_no_percentile() -> None:
    assert percentile(array("d"), 0.5) is None
