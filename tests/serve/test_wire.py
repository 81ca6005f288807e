"""What the live page is sent, without a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from depthkit.pipeline.stream import Result

from ..support import model_spec
from .pages import decode, grey_frames

# After `pages`, which skips where Starlette is missing.
from depthkit.serve.wire import metres_per_level, pack  # isort: skip


@given(low=st.floats(-1e3, 1e3), span=st.floats(0, 1e3))
def test_depth_without_metres_keeps_every_answer(low: float, span: float) -> None:
    answers = np.linspace(low, low + span, 12, dtype=np.float32).reshape(3, 4)
    frame = next(grey_frames(1, (3, 4)))
    result = Result(frame, frame.image((3, 4)), answers, {"engine": 0.0})
    shown = decode(pack(result, None, dropped=0, shown=1).message())
    assert shown.depth.min() >= 1, "0 is for no depth"
    found = shown.header["offset"] + shown.header["unit"] * shown.depth
    assert np.abs(found - answers).max() <= shown.header["unit"] * 0.51 + 1e-6 * abs(low)


def test_the_unit_is_a_millimetre_or_what_the_range_needs() -> None:
    spec = model_spec(16, 32)
    assert metres_per_level(spec) == 0.001
    assert metres_per_level(replace(spec, depth_range=(1, 131.07))) == 0.002
    assert metres_per_level(replace(spec, answers="relative")) is None
