"""Calibration methods: `name(histogram, *, hyper) -> (low, high)`, the range of values that quantization must cover."""
