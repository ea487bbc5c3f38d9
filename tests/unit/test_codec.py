"""INT8 rows: values by hand, and the bound on the round trip."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pinrec_core.codec import dequantize, quantize


def test_by_hand():
    codes, scale = quantize(np.array([[1.27, -0.635, 0.0], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0]]  # 63.5 rounds to even
    np.testing.assert_allclose(scale, [0.01, 0.0], rtol=1e-6)


def test_no_rows():
    codes, scale = quantize(np.zeros((0, 4)))
    assert dequantize(codes, scale).shape == (0, 4)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e6, 1e6, width=32)))
def test_round_trip_within_half_a_step(rows):
    codes, scale = quantize(rows)
    error = np.abs(dequantize(codes, scale) - rows)
    assert (error <= scale[:, None] / 2 * (1 + 1e-4) + 1e-30).all()
