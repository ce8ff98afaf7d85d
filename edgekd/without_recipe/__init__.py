"""Compresses a model without a recipe: recipes are made from the model and the data, and run in order of cost."""
