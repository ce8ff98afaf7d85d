"""The verb `schema`: the JSON Schema of a file that edgekd reads or writes."""

from __future__ import annotations

import click

from edgekd.errors import PASSED

KINDS = ("result", "manifest", "budget", "target", "recipe", "preprocess")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
def command(kind):
    """Print the JSON Schema of a file that edgekd reads or writes."""
    import json

    from edgekd.run.schemas import schema

    click.echo(json.dumps(schema(kind), indent=2, sort_keys=True))
    return PASSED
