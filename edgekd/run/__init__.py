"""One run, from a recipe to its folder: read, resolve, plan, make the steps, evaluate, conclude."""
