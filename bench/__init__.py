"""Sessions in; latency, parity, accuracy and a report out."""
