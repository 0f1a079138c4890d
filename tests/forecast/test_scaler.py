"""The scale that models see: fitted on training rows, undone exactly, kept in JSON."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from recurra.forecast.data.scaler import Scaler

VALUES = arrays(
    np.float64,
    array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6),
    elements=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
)
KINDS = ("standard", "minmax", "maximum", "none", "window")


@pytest.mark.parametrize("kind", KINDS)
@given(values=VALUES)
def test_is_undone_and_comes_back_from_json(kind: str, values: np.ndarray) -> None:
    scaler = Scaler.fit(kind, values)
    assert (scaler.scale > 0).all()
    assert np.isfinite(scaler.shift).all()
    scaled = scaler.apply(values)
    assert (np.isnan(scaled) == np.isnan(values)).all()
    np.testing.assert_allclose(scaler.undo(scaled), values, rtol=1e-12, atol=1e-9)
    again = Scaler.from_json(json.loads(json.dumps(scaler.to_json())))
    assert again.kind == kind
    np.testing.assert_array_equal(again.shift, scaler.shift)
    np.testing.assert_array_equal(again.scale, scaler.scale)


def test_standard_has_population_deviation_without_missing_values() -> None:
    values = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, np.nan], [np.nan, 5.0, np.nan], [6.0, 5.0, np.nan]])
    scaler = Scaler.fit("standard", values)
    np.testing.assert_allclose(scaler.shift, [3.0, 5.0, 0.0])
    np.testing.assert_allclose(scaler.scale, [np.sqrt(14 / 3), 1.0, 1.0])


def test_a_constant_that_has_no_exact_sum_has_scale_1() -> None:
    scaler = Scaler.fit("standard", np.full((1000, 1), 0.1))
    assert scaler.scale == 1
    assert (scaler.apply(np.full((3, 1), 0.1)) == 0).all()


def test_minmax_and_maximum() -> None:
    values = np.array([[2.0, 0.2], [4.0, 0.5]])
    np.testing.assert_array_equal(Scaler.fit("minmax", values).apply(values), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(Scaler.fit("maximum", values).scale, [4.0, 1.0])


def test_float32_is_summed_in_double() -> None:
    values = (1e4 + np.random.default_rng(0).normal(size=(200_000, 1))).astype(np.float32)
    scaler = Scaler.fit("standard", values)
    np.testing.assert_allclose(scaler.shift, values.astype(np.float64).mean(0), rtol=1e-12)


def test_some_of_the_columns() -> None:
    scaler = Scaler.fit("standard", np.arange(12.0).reshape(4, 3) ** 2)
    np.testing.assert_array_equal(scaler.columns([2, 0]).shift, scaler.shift[[2, 0]])


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="scaler must be one of standard, minmax, maximum, none, window; got 'robust'"):
        Scaler.fit("robust", np.zeros((2, 1)))
