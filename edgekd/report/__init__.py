"""Reports of a run for people and machines: a text table, markdown, a self-contained HTML page, and formats of CI
systems.

`terminal.table(result)` returns text; `markdown.write(folder)` and `page.write(folder)` read RUN/result.json and
RUN/recipe.toml and write a file beside them; `machine.*(checks)` return text. They show figures and make no decisions.
`rows.py` has the rows that all of them show.
"""
