"""Measuring the latency, parity and accuracy of sessions."""
