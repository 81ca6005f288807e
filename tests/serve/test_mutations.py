"""Requests with arbitrary damage: an answer without a traceback, or a closed connection, and the server goes on."""

from __future__ import annotations

import random

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
    statuses = set()
    with serving({"a": fake()}, limits=Limits(body_s=0.2)) as served:
        for request in valid:
            assert answer_to(served.port, request, 10).startswith(b"HTTP/1.1 200")
        for _ in range(150):
            answer = answer_to(served.port, mutated(rng.choice(valid), rng), 10)
            assert b"Traceback" not in answer
            assert b"/tmp" not in answer
            assert b".py" not in answer
            statuses.add(int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0)
        image = images()
        np.testing.assert_array_equal(depth_of(served.client().infer(image))[0], first_channel(image[0]))
    assert {200, 400, 404} <= statuses
    assert all(status < 500 for status in statuses)
