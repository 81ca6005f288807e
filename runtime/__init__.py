"""Opening engine files as sessions."""
