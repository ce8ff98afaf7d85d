"""The verb `init`: the files of a project from a model and its data: a task, a recipe, budgets and a workflow of CI."""

from __future__ import annotations

import click

from edgekd.errors import PASSED
from edgekd.verbs import _options


@click.command()
@click.argument("model")
@_options.of_model(required=True)
@click.option("--target", "targets", multiple=True, metavar="T", help="A target's name or file. Repeat for several.")
@click.option("--out", type=click.Path(), default=".", show_default=True, help="Folder to write the files into.")
@_options.quiet
def command(model, data, targets, out, max_drop, limits, preprocess, quiet):
    """Write a task, a recipe, budgets and a workflow for a MODEL and its data, as `compress` takes them.

    The recipe has all that `edgekd compress MODEL --data DATA` may try. Files that are there are not replaced.
    """
    from pathlib import Path

    from edgekd.progress import reporter
    from edgekd.without_recipe import files
    from edgekd.without_recipe.asked import Asked

    asked = Asked(model, data, tuple(targets), max_drop, dict(limits), preprocess)
    _options.show(files.write(asked, Path(out), reporter(quiet)))
    return PASSED
