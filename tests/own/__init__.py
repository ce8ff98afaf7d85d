"""A runtime and a format of the tests' own, named by their module paths in target files."""
