"""One run, from a recipe to its folder: read, resolve, plan, execute, evaluate, conclude."""
