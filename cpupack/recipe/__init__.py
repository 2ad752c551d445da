"""The recipe: its keys (``model``), reading and checking a file, the generated reference, and writing a new one.

The slowest import here is pydantic. Nothing here imports torch.
"""

from cpupack.recipe.model import (
    WEIGHT_FILES,
    Bench,
    Calibration,
    Cpu,
    Evaluation,
    Fuse,
    Input,
    Isa,
    LoadedRecipe,
    Model,
    ObserverName,
    Output,
    Package,
    Preprocess,
    Quantize,
    Recipe,
    Table,
    Target,
    TargetArm,
    TargetX86,
    Task,
    Tune,
)

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
    "Tune",
]
