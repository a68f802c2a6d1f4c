"""Programs that measure; their results are in README.md beside them."""
