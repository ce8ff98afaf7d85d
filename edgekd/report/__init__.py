"""What people and machines are shown of a run: a text table, markdown, a self-contained page, and formats of CI
systems.

`terminal.table(result)` returns text; `markdown.write(folder)` and `page.write(folder)` read RUN/result.json and
RUN/recipe.toml and write a file beside them; `machine.*(checks)` return text. They show figures and decide nothing.
`rows.py` is what all of them show.
"""
