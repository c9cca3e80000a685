"""Rows: read, checked, encoded, batched."""
