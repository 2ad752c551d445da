"""The recipe: its keys (``recipe.py`` and ``tables/``), reading and checking a file, the reference, a new one.

The slowest import here is pydantic. Nothing here imports torch.
"""

from cpupack.recipe.recipe import LoadedRecipe, Recipe
from cpupack.recipe.tables.base import Table
from cpupack.recipe.tables.model import WEIGHT_FILES, Model
from cpupack.recipe.tables.package import Package
from cpupack.recipe.tables.quantize import Calibration, Evaluation, Fuse, ObserverName, Quantize
from cpupack.recipe.tables.signature import Input, Output, Preprocess, Task
from cpupack.recipe.tables.target import Bench, Cpu, Isa, Target, TargetArm, TargetX86, Tune
from cpupack.recipe.tables.text import Tokenizer

__all__ = [
    "WEIGHT_FILES",
    "Bench",
    "Calibration",
    "Cpu",
    "Evaluation",
    "Fuse",
    "Input",
    "Isa",
    "LoadedRecipe",
    "Model",
    "ObserverName",
    "Output",
    "Package",
    "Preprocess",
    "Quantize",
    "Recipe",
    "Table",
    "Target",
    "TargetArm",
    "TargetX86",
    "Task",
    "Tokenizer",
    "Tune",
]
