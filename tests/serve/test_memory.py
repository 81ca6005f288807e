"""A picture takes no more memory than `/v1/depth` counts for it, in every format."""

from __future__ import annotations

import sys

import pytest

from ..support import run_code

pytest.importorskip("starlette", reason="pip install 'depthkit[serve]'")

from depthkit.serve.formats import FORMATS  # isort: skip

CODE = """
import io, re, sys
from pathlib import Path

import numpy as np
from PIL import Image

from depthkit.data.upload import Upload
from depthkit.serve.depth import Wish, _decoded
from depthkit.serve.formats import FORMATS, Made
from depthkit.tests.support import model_spec

def bytes_of(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def peak(height, width, name):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    sent = io.BytesIO()
    Image.fromarray(pixels).save(sent, "PNG", compress_level=0)
    spec = model_spec(240, 320)
    wish = Wish(FORMATS[name], intrinsics="fov=60", colormap="turbo" if "colormap" in name else "")
    small = np.tile(np.linspace(1, 6, 320, dtype=np.float32), (240, 1))  # no point of it flies
    del pixels
    Path("/proc/self/clear_refs").write_text("5")
    before = bytes_of("VmRSS")
    picture = _decoded(Upload(sent.getvalue()), spec, wish)
    answer = wish.format.encode(Made(small, picture, False, spec, "a", "1", wish.colormap))
    counted = wish.format.memory(height * width, 240 * 320)
    assert len(answer) <= counted
    return (bytes_of("VmHWM") - before) / counted

peak(48, 64, sys.argv[1])
print(peak(2000, 3000, sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/clear_refs is Linux's")
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_takes_what_is_counted(name: str) -> None:
    assert 0.1 < float(run_code(CODE, name)) <= 1
