"""ONNX files of anybody's making: read without trust in them, their weights in a second file, the shapes of their
values. Nothing is run."""
