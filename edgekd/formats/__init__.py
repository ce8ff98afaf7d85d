"""Formats of exported files. A format is a file of this folder, or a module of one's own that a target names as
`package.module`. It says

SUFFIX      of its files' names, as `.onnx`
REFERENCE   the runtime that tells what its files compute (default: the runtime of the target that asks for the format)
export(graph, grid | None, example, path, *, metadata, inputs, outputs) -> {site: name of its value in the file}
            `graph` is a captured one, `example` two samples as tensors; with `blocks`, {layer: its weight in blocks}

and optionally

difference(path, module, grid, blocks, names, inputs, feed) -> text     where the file and its model part
audit(path, feed) -> {fact: JSON value}     what else is to be known of an int8 file

A format renders the grid that it is given; it learns or changes no scale. What it can't take it refuses by the site's
name."""
