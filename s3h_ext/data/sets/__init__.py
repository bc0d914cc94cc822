"""Data sets: one file per source of images, and what reads, checks and fetches them."""
