"""For your own pytest and CI: assert that an engine still agrees with the model it was made from.

    import depthkit
    from depthkit.testing import assert_parity, read_reference

    def test_engine() -> None:
        with depthkit.load("compact-240x320.fp16.ov.blob") as session:
            assert_parity(session, read_reference("compact-240x320.reference.npz"), precision="fp16")

`depthkit bench` makes the same check of every row, with the same limits (`depthkit.precisions`).
"""

from __future__ import annotations

from pathlib import Path

from . import reference as _reference
from .bench.replay import measure_parity
from .parity import Parity, gate_faults
from .precisions import PRECISIONS, Precision
from .reference import Reference
from .session import Session

__all__ = ["Parity", "Reference", "assert_parity", "read_reference"]


def read_reference(path: str | Path) -> Reference:
    """Read the frames and the model's own FP32 depth that `depthkit export` wrote. Raises EngineError."""
    return _reference.read_reference(Path(path))


def assert_parity(session: Session, reference: Reference, *, precision: Precision) -> Parity:
    """Raise AssertionError unless `session` agrees with the reference on its frames.

    Args:
        session: open, and of the reference's frame size. Its binding is replaced.
        reference: frames (N x H x W x 3 uint8) and the model's own FP32 depth (N x H x W float32).
        precision: requested precision of the engine; selects the limits in `depthkit.precisions.PRECISIONS`.

    Returns:
        The measured parity.

    Raises:
        AssertionError: with metric, limit, observed value and the worst frame.
        EngineError: the reference has another size than the engine.
    """
    parity, _ = measure_parity(session, reference)
    if faults := gate_faults(parity, precision):
        raise AssertionError(_message(session, parity, precision, faults))
    return parity


def _message(session: Session, parity: Parity, precision: Precision, faults: list[str]) -> str:
    spec, limits = session.spec, PRECISIONS[precision].tolerance
    unit, most, largest = "mm", limits.max_abs_mm, parity.max_abs_mm
    if not parity.is_metric:
        unit, most, largest = "%", limits.max_abs_percent, parity.max_abs_percent
    rows = [
        ("metric", "limit", "observed", "worst frame"),
        (f"max |Δ| {unit}", _limit("≤", most), f"{largest:.4g}", str(parity.max_abs_frame)),
        ("SSIM", _limit("≥", limits.min_ssim), f"{parity.worst_ssim:.5f}", str(parity.worst_ssim_frame)),
    ]
    if parity.is_metric:
        rows += [
            ("AbsRel worse", _limit("≤", limits.max_abs_rel_loss), _found(parity.abs_rel_loss), ""),
            ("δ1 worse", _limit("≤", limits.max_delta1_loss), _found(parity.delta1_loss), ""),
        ]
    rows.append(("finite", "everywhere", "yes" if parity.finite else "no", ""))
    table = "\n".join("  " + "".join(cell.ljust(14) for cell in row).rstrip() for row in rows)
    model = f"{spec.network} {spec.describe_sizes()}"
    return (
        f"{model} on {session.provider} fails the {precision} gate: {'; '.join(faults)}\n"
        f"{table}\n  on {parity.frames} reference frames"
    )


def _found(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.5f}"


def _limit(relation: str, limit: float | None) -> str:
    return "none" if limit is None else f"{relation} {limit:g}"
