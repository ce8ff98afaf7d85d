"""Measuring exported files: timing and scoring jobs on a host, instruction counts, static counts, and the intervals of
every figure."""
