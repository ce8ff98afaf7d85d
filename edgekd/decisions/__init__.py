"""Decisions: the Pareto front, the choice, the gate. They read only measurements and records per sample: no models, no
files."""
