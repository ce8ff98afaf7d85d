"""Ranges for calibration: `name(histogram, *, hyper) -> (low, high)`, the interval that a site's lattice is to
cover."""
