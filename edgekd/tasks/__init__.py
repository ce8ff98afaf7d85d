"""Built-in tasks: `edgekd/tasks/<name>.py` defines `task` (a Task), or a function `<name>(...)` that returns one and
whose keyword arguments are the recipe's `task` settings. The folder is the list."""
