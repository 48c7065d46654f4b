# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from hvring.host import LatencyHistogram


def test_percentiles_are_right_to_a_tenth():
    measure = LatencyHistogram()
    for milliseconds in range(1, 1001):
        measure.record(10, 20, milliseconds / 1000)
    assert measure.median == pytest.approx(0.5, rel=0.1)
    assert measure.p99 == pytest.approx(0.99, rel=0.1)
    assert measure.percentile(1.0) == pytest.approx(1.0, rel=0.1)
    assert (measure.exchanges, measure.bytes_sent, measure.bytes_received) == (1000, 10_000, 20_000)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_times_beyond_the_scale_are_counted_at_its_ends(seconds):
    measure = LatencyHistogram()
    measure.record(0, 0, seconds)
    assert measure.exchanges == 1
    assert measure.median is not None


def test_there_is_no_median_of_nothing():
    assert LatencyHistogram().as_dict()["median_seconds"] is None
