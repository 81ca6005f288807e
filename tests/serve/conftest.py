"""Live pages and a browser, for every test in this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthkit.data.images import resize_depth

from ..support import save_array


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Serves sources until the test ends; see `pages.served`."""
    from .pages import served

    with ExitStack() as pages:
        yield lambda source, **options: pages.enter_context(served(source, **options))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One tab with a camera that shows a pattern, for all tests of a module; each opens its own page."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed; `apt-get install chromium`")
    from .browser import chromium

    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with chromium(program, tmp_path_factory.mktemp("browser"), *flags) as tab:
        yield tab


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of smooth colours."""
    coarse = np.random.default_rng(1).uniform(0, 255, (6, 9)).astype(np.float32)
    channels = [resize_depth(np.roll(coarse, shift), (97, 141), smooth=True) for shift in range(3)]
    return save_array(tmp_path / "photo.png", np.stack(channels, axis=-1).astype(np.uint8))


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """The tab of the module's `browser`. Nothing may be complained of; the tests that provoke it empty `errors`."""
    browser.errors.clear()
    yield browser
    browser.value("1")  # what came since the last call is noted
    assert browser.errors == []
    browser.call("Page.navigate", url="about:blank")
