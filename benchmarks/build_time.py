"""How long does a build take, stage by stage? ``python benchmarks/build_time.py RECIPE... [--set KEY=VALUE]``.

Builds each recipe, and runs its FP32 model once over its calibration samples, as torch runs it: in the recipe's
batches, on all threads. Calibration should take at most three times as long.

    python benchmarks/build_time.py recipes/resnet50.toml --set tune.budget_s=45

Prints one JSON object a line: first the host, then ``wall_s`` and ``cpu_s`` of each stage with its processes, in order,
then those of the whole build (stage ``build``) and of the plain pass (``plain FP32 pass``). ``cpu_s`` adds up all
threads, and changes less than ``wall_s`` when other work shares the host. ``load`` is the host's load average at the
end of the stage, ``peak_mb`` the most memory that the build's process had until then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cpupack.api import build
from cpupack.layout import batch_channels_last
from cpupack.pipeline import BuildOptions
from cpupack.pipeline.prepare import run_float
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.file import load_recipe
from cpupack.runtime.host.probe import HostProbe, describe

PLAIN = "plain FP32 pass"


class Stopwatch(SilentProgress):
    """Prints a row for each stage of a recipe's build."""

    def __init__(self, recipe: str) -> None:
        super().__init__()
        self._recipe = recipe

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage."""
        with super().stage(title), self.timed(title):
            yield

    @contextmanager
    def timed(self, title: str) -> Iterator[None]:
        """Time what runs inside, and print its row."""
        wall_s, cpu_s = time.monotonic(), _cpu_s()
        yield
        row = {
            "recipe": self._recipe,
            "stage": title,
            "wall_s": round(time.monotonic() - wall_s, 2),
            "cpu_s": round(_cpu_s() - cpu_s, 2),
            "load": round(os.getloadavg()[0], 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(row), flush=True)  # noqa: T201 - a script


def main() -> None:
    """Build, run the plain pass, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for cpupack build")
    parser.add_argument("--no-tune", action="store_true", help="as for cpupack build")
    arguments = parser.parse_args()
    host = HostProbe()
    facts = describe(host)
    print(json.dumps({"host": facts, "threads": torch.get_num_threads()}), flush=True)  # noqa: T201 - a script
    for path in arguments.recipes:
        recipe = load_recipe(path, arguments.set)
        watch = Stopwatch(recipe.recipe.package.name)
        with tempfile.TemporaryDirectory() as out, watch.timed("build"):
            build(recipe, out=out, options=BuildOptions(tune=not arguments.no_tune), progress=watch)
        plain_pass(recipe, watch)


def plain_pass(recipe: LoadedRecipe, watch: Stopwatch) -> None:
    """Run the FP32 model over the calibration samples, and print the row."""
    few = recipe.recipe.evaluation.model_copy(update={"samples": 1})
    loaded = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update={"evaluation": few})})
    model, samples, _ = run_float(loaded, SilentProgress())
    if samples is None:
        return
    with watch.timed(PLAIN), torch.inference_mode():
        for batch in samples.batches(recipe.recipe.calibration_batch_size):
            model.module(batch_channels_last(batch))


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
