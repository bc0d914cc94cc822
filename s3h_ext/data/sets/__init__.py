"""Data sets: one file per source of images; reading, checks and downloads."""
