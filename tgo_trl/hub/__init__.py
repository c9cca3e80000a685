"""Repositories on the Hub, and uploads to them: one commit each, retried, bounded in time."""
