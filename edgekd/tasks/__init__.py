"""Built-in tasks: `edgekd/tasks/<name>.py` holds `task` (a Task), or a function `<name>(...)` whose keyword arguments
are the recipe's `task` settings and which returns one. The folder is the list."""
