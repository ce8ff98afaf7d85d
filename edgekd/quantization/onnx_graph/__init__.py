"""Quantization of float ONNX files from elsewhere, without torch: normalize, place, calibrate, render as QDQ."""
