"""Pictures and depth, without torch: what a sample is, its sources, and picture files."""
