"""Columns to pixels: what a file is, which files a row may name, and how images and videos come to a size."""
