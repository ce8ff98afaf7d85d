"""Tables as text: plain ones, and with rich those that fold long cells or have colours."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Sequence

from edgekd.errors import plain

UNLIMITED = 1000  # columns that no line needs


def aligned(rows: Iterable[Sequence[str]], right: Collection[int] = (), indent: str = "") -> str:
    """Rows of cells as lines, each column as wide as its widest cell; columns of the numbers in `right` end alike."""
    rows = [plain(tuple(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    set_ = lambda i, cell: cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
    return "\n".join((indent + "  ".join(set_(i, cell) for i, cell in enumerate(row))).rstrip() for row in rows)


def columns(otherwise: int) -> int:
    """Those of the terminal that is written to."""
    return shutil.get_terminal_size((otherwise, 24)).columns if sys.stdout.isatty() else otherwise


def folded(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], width: int = 140) -> str:
    """A table under a title, as wide as the terminal, `width` columns where there is none: long cells go on in the next
    line."""
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    return printed(table, width=None if terminal else width, force_terminal=terminal)


def styled(heads: Sequence[str], rows: Iterable[Sequence[str]], styles: Iterable[str], right: int, colour: bool) -> str:
    """A table whose rows have a style each, as wide as it is; its columns from `right` on end alike."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i >= right else "left", no_wrap=True)
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*map(Text, row), style=style)
    system = {"color_system": "standard" if colour else None, "markup": False, "highlight": False}
    return printed(table, width=UNLIMITED, force_terminal=colour, legacy_windows=False, **system)


def printed(table: object, **console: object) -> str:
    """What rich prints, without spaces at the ends of lines."""
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, **console).print(table)  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
