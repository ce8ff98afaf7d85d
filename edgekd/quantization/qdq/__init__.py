"""What a file in QDQ form computes: its integer layers, onnxruntime's kernels in numpy, saturation, partly quantized
files."""
