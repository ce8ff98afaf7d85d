"""Decisions: what the front is, what is chosen, whether it passes. They read measurements and records per sample only:
no models, no files."""
