"""Data sets and file formats of raw MRI: one file a format."""
