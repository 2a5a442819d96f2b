"""Programs that measure; run from a checkout, not installed."""
