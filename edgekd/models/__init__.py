"""Torch models: files without pickle (`saved`), outputs of their layers (`taps`), precision, and small networks for the
built-in tasks."""
