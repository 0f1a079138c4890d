"""The test of Diebold and Mariano: a computation by hand, its size by simulation, and what it cannot tell."""

import math
from unittest import mock

import jaxtyping
import numpy as np
import pytest
from scipy import stats

from recurra.forecast.significance import OriginLosses, compare_losses, diebold_mariano


def by_hand(d: list[float], horizon: int) -> float:
    """Harvey, Leybourne and Newbold's statistic (1997, equations 5 and 8), term by term."""
    n = len(d)
    mean = sum(d) / n
    variance = 0.0
    for lag in range(-(horizon - 1), horizon):
        terms = [(d[t] - mean) * (d[t - abs(lag)] - mean) for t in range(abs(lag), n)]
        variance += sum(terms) / n
    statistic = mean / math.sqrt(variance / n)
    return statistic * math.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n)


@pytest.mark.parametrize("horizon", [1, 2, 4])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_against_a_computation_by_hand(horizon: int, power: float) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(0, 1.3, 24), draw.normal(0, 1.0, 24)
    found = diebold_mariano(a, b, horizon, power=power)
    expected = by_hand((np.abs(a) ** power - np.abs(b) ** power).tolist(), horizon)
    assert found.statistic == pytest.approx(expected, rel=1e-12)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(expected), 24 / horizon - 1), rel=1e-12)
    assert found.difference == pytest.approx(float((np.abs(a) ** power - np.abs(b) ** power).mean()))
    assert (found.count, found.reason) == (24, "")
    other = diebold_mariano(b, a, horizon, power=power)
    assert (other.statistic, other.p_value) == pytest.approx((-found.statistic, found.p_value))


@pytest.mark.parametrize(("horizon", "count"), [(1, 20), (4, 40), (24, 240), (24, 720)])
def test_size_is_that_of_its_level(horizon: int, count: int) -> None:
    draw, trials = np.random.default_rng(1), 1000
    rejected = 0
    for _ in range(trials):
        # Equally good; neighbouring origins overlap as those of such a horizon do.
        d = np.convolve(draw.standard_normal(count + horizon - 1), np.ones(horizon), "valid")
        rejected += compare_losses(d, horizon).p_value < 0.05
    assert 0.03 < rejected / trials < 0.08


def test_finds_a_difference_that_is_there() -> None:
    draw = np.random.default_rng(2)
    noise = draw.standard_normal((300, 6, 2))
    found = diebold_mariano(noise * 1.3, draw.standard_normal((300, 6, 2)), 6)
    assert found.p_value < 1e-6
    assert found.difference > 0


def test_newey_west_where_the_other_variance_is_not_positive() -> None:
    d = np.tile([1.0, -1.1], 20)
    found = compare_losses(d, 2)
    assert math.isfinite(found.statistic)
    assert found == compare_losses(d, 2, kernel="bartlett")


def test_missing_values_are_left_out_origin_by_origin() -> None:
    draw = np.random.default_rng(3)
    a, b = draw.standard_normal((40, 3)), draw.standard_normal((40, 3))
    a[4], b[7, 1] = np.nan, np.nan
    found = diebold_mariano(a, b, 1)
    difference = a**2 - b**2
    kept = np.array([row[np.isfinite(row)].mean() for index, row in enumerate(difference) if index != 4])
    assert found == compare_losses(kept, 1)
    assert found.count == 39


def test_what_cannot_be_told_is_said() -> None:
    same = np.random.default_rng(0).standard_normal(50)
    found = diebold_mariano(same, same)
    assert (found.p_value, found.reason) == (1.0, "every origin has the same difference")
    few = diebold_mariano(same, 2 * same, 24)
    assert (few.p_value, few.reason) == (1.0, "50 origins of which 24 overlap; expected at least 96")
    none = diebold_mariano(np.zeros((0, 3)), np.zeros((0, 3)))
    assert (none.p_value, none.difference, none.count) == (1.0, 0.0, 0)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        compare_losses(same, 0)
    untyped = mock.patch.object(jaxtyping.config, "jaxtyping_disable", True)
    with untyped, pytest.raises(ValueError, match="expected the same"):
        diebold_mariano(same, same[1:])


def test_losses_by_origin_in_any_order() -> None:
    draw = np.random.default_rng(4)
    target, origins = draw.standard_normal((60, 4, 2)), 3 * np.arange(60)
    target[5, 2] = np.nan
    a, b = target + draw.normal(0, 1, target.shape), target + draw.normal(0, 1.2, target.shape)
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    expected = diebold_mariano(a - target, b - target, 2)  # four steps, three apart
    one, two = OriginLosses(), OriginLosses()
    for part in np.array_split(draw.permutation(60), 7):
        one.add(origins[part], a[part], target[part])
        two.add(origins[part], b[part], target[part], np.isfinite(target[part]))
    assert one.means()[0].tolist() == origins.tolist()
    found = one.against(two, 4)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.p_value), rel=1e-9)
    assert OriginLosses().against(OriginLosses(), 4).count == 0
