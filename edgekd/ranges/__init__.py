"""Calibration methods: `name(histogram, *, hyper) -> (low, high)`, the range of values that quantization must cover.
`name(extremes, ...)` is enough for one that reads only the extremes, and takes a tenth of the time.

Both within what the histogram has seen; the caller widens the range to 0. Values outside are clipped. A range should
lose little in the mean square beside `minmax` and `mse`, whatever the distribution (tests/test_ranges.py has some)."""
