"""Pictures with depth, without torch: samples, data sets and picture files."""
