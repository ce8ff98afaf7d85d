"""Quantization of a captured torch graph: where it is quantized, calibration, fake quantization, and its evaluation in
integer arithmetic."""
