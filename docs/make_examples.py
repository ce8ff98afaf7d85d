"""Writes docs/examples/: a page for each example that shows a kind of output or of input, with its task file whole.

    python docs/make_examples.py

tests/test_examples.py fails where a page is not what this writes, or a task file has more than 30 lines.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent / "examples"
EXAMPLES = HERE.parent.parent / "benchmarks" / "examples"
NOTE = "<!-- written by docs/make_examples.py from benchmarks/examples: change those -->"
KINDS = ("segmentation", "multi_label", "binary", "regression", "two_heads", "recurrent", "strings", "streaming")


def page(name: str) -> str:
    """The page of an example: what its README says, its task and its recipe."""
    folder = EXAMPLES / name
    (task,) = folder.glob("*.py")
    head, commands = re.fullmatch(r"(.*?)(```sh\n.*?```\n)", (folder / "README.md").read_text("utf-8"), re.S).groups()
    parts = [
        f"{NOTE}\n",
        head,
        f"`{task.name}`:\n\n```python\n{task.read_text('utf-8')}```\n",
        f"`recipe.toml`:\n\n```toml\n{(folder / 'recipe.toml').read_text('utf-8')}```\n",
        f"Both are in [`benchmarks/examples/{name}`](../../benchmarks/examples/{name}/). In that folder:\n",
        commands,
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def pages() -> dict[str, str]:
    """{file: text}"""
    titles = [f"- [{page(name).splitlines()[2].removeprefix('# ')}]({name}.md)\n" for name in KINDS]
    index = f"{NOTE}\n\n# Kinds of outputs and inputs\n\nA task and a recipe for each, whole:\n\n{''.join(titles)}"
    return {"README.md": index} | {f"{name}.md": page(name) for name in KINDS}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
