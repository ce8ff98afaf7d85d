"""Formats: `export(graph, grid | None, example, path, *, metadata, ...) -> {site: name of its value in the file}`.

A format renders the grid that it is given; it learns or changes no scale. What it can't take it refuses by the site's
name."""
