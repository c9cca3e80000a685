"""Bytes on disk: files that are whole or as they were, folders that vouch for theirs, and who may write to them."""
