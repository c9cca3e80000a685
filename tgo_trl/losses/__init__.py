"""Losses, one file each: errors of rows to a loss, equation by equation. Torch only."""
