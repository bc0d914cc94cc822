"""Metrics, tables and figures of a run."""
