"""Engine file in, Session out."""
