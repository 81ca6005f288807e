"""Requests with arbitrary damage: an answer without a traceback, or a closed connection, and the server goes on."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from depthkit.serve.connection import Connection
from depthkit.serve.service import Limits

from .mutations import answer_to, mutated, valid_requests
from .services import SIZE, depth_of, fake, first_channel, images, serving


def test_no_damage_shows_a_traceback_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_s", 0.2)
    rng = random.Random(0)
    valid = valid_requests("a", SIZE)
    with serving({"a": fake()}, limits=Limits(body_s=0.2)) as served:
        for request in valid:
            assert answer_to(served.port, request, 10).startswith(b"HTTP/1.1 200")
        damaged = [mutated(rng.choice(valid), rng) for _ in range(150)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda request: answer_to(served.port, request, 10), damaged))
        image = images()
        np.testing.assert_array_equal(depth_of(served.client().infer(image))[0], first_channel(image[0]))
    assert not any(word in answer for answer in answers for word in (b"Traceback", b"/tmp", b".py"))
    statuses = {int(answer[9:12]) for answer in answers if answer.startswith(b"HTTP/1.1 ")}
    assert {200, 400, 404} <= statuses
    assert all(status < 500 for status in statuses)
