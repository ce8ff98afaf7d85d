"""Samples of other people's models: read from files and folders, checked, and brought to the inputs of a model."""
