"""Live pages, for every test in this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Serves sources until the test ends; see `pages.served`."""
    from .pages import served

    with ExitStack() as pages:
        yield lambda source, **options: pages.enter_context(served(source, **options))


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """The tab of the module's `browser`. Nothing may be complained of; the tests that provoke it empty `errors`."""
    browser.errors.clear()
    yield browser
    browser.value("1")  # what came since the last call is noted
    assert browser.errors == []
    browser.call("Page.navigate", url="about:blank")
