"""The tables of a recipe, by theme. The docstring of each field is its reference documentation.

The whole recipe is ``cpupack/recipe/recipe.py``.
"""
