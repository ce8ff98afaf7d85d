"""Torch models: on disk without pickle (`saved`), their inner layers (`taps`), precision, and small networks for the
built-in tasks."""
