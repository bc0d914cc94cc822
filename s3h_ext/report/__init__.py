"""Metrics, tables and pictures of one run."""
