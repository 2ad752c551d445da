"""Stages of the pipeline that look into the cache first: capture, calibrate, observe, the FP32 outputs, the race."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import fx, nn

from cpupack.accuracy import FloatArray
from cpupack.artifacts import CalibratedModel, CapturedModel, FloatModel, FusedModel, Samples, Seen
from cpupack.cache.calibration import pack_calibration, unpack_calibration
from cpupack.cache.fingerprint import Fingerprint, UnknownError
from cpupack.cache.graphs import pack_graph, unpack_graph
from cpupack.cache.identity import digest, settings_of, surroundings, users_code
from cpupack.cache.store import DEFAULT_LIMIT_BYTES, Entry, Store, is_off, tensor_of, user_store
from cpupack.cache.values import NotStorableError
from cpupack.layout import batch_channels_last
from cpupack.lock.facts import data_hash, graph_hash
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe.files import named_files, place_of
from cpupack.runtime.manifest import hash_file
from cpupack.runtime.signature import worst_sqnr_db
from cpupack.statistics import ActivationStats

_T = TypeVar("_T")
_EQUAL_DB = 80.0
"""The model as loaded must agree that well with what the cache says about it: rounding in another order leaves more."""
_CHECKED_SAMPLES = 4

_WORDS = {
    "capture": "captured graph",
    "calibrate": "calibration statistics",
    "observe": "ranges on the evaluation data",
    "outputs": "FP32 outputs",
    "race": "race",
}


def stage_in_words(stage: str) -> str:
    """Return what an entry of a stage holds."""
    return _WORDS[stage]


class _Recorded:
    """Passes reports on, and keeps notes and warnings, which are told again when the result comes from the cache."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.said: list[tuple[str, str]] = []

    @property
    def times_s(self) -> Mapping[str, float]:
        return self._progress.times_s

    @property
    def warnings(self) -> Any:
        return self._progress.warnings

    def stage(self, title: str) -> AbstractContextManager[None]:
        return self._progress.stage(title)

    def step(self, done: int, total: int, what: str = "") -> None:
        self._progress.step(done, total, what)

    def note(self, text: str) -> None:
        self.said.append(("note", text))
        self._progress.note(text)

    def warn(self, text: str) -> None:
        self.said.append(("warn", text))
        self._progress.warn(text)


@dataclass
class StageCache:
    """The cache of one build, or of another command that runs its stages.

    Without a ``store``, and of a model that has no hash, every stage does its work.

    ``taken`` names the stages that took their result from the cache, ``made`` those that put one there.
    """

    store: Store | None = None
    label: str = ""
    taken: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    _surroundings: str = ""
    _model: str | None = None

    @classmethod
    def none(cls) -> StageCache:
        """Return a cache that keeps nothing."""
        return cls()

    @classmethod
    def of_user(
        cls, loaded: LoadedRecipe, progress: Progress, *, use: bool = True, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> StageCache:
        """Return the cache for a recipe in the user's directory; one that keeps nothing where it is turned off."""
        if not use or is_off():
            return cls()
        return cls.opened(user_store(limit_bytes), loaded, progress)

    @classmethod
    def opened(cls, store: Store | None, loaded: LoadedRecipe, progress: Progress) -> StageCache:
        """Return the cache for a recipe. Where the directory cannot be used, it keeps nothing and says so."""
        if store is None:
            progress.note("nothing is cached: this user has no home directory; set XDG_CACHE_HOME to one")
            return cls()
        problem = store.problem()
        if problem is not None:
            progress.note(f"nothing is cached: {problem}")
            return cls()
        return cls(store, loaded.recipe.package.name)

    def identify(self, model: FloatModel, loaded: LoadedRecipe, progress: Progress) -> None:
        """Note which model this is. Called when it and its data are loaded, so that all of the user's code is, too."""
        if self.store is None:
            return
        self._surroundings = surroundings()
        try:
            found = Fingerprint().add(model.module)
            code = users_code(found.modules)
        except (UnknownError, RecursionError, RuntimeError) as error:
            progress.note(f"capture and FP32 outputs are not cached: the model holds {error}, which has no hash")
            return
        recipe = loaded.recipe
        tables = [recipe.model, recipe.input, recipe.output, recipe.preprocess, recipe.task, recipe.tokenizer]
        signature = Fingerprint().add(repr(model.signature)).hexdigest()
        files = [
            (each.name, _file_hash(each.name, loaded))
            for each in named_files(recipe, loaded.path.parent)
            if each.key.startswith(("model.", "tokenizer."))
        ]
        self._model = digest(files, found.hexdigest(), code, [settings_of(each) for each in tables], signature)

    def capture(
        self,
        model: FloatModel,
        samples: Samples | None,
        examples: torch.Tensor,
        recipe: Recipe,
        progress: Progress,
        make: Callable[[Progress], CapturedModel],
    ) -> CapturedModel:
        """Return the captured graph: kept, or else made. A model that stays as it is written is no graph."""

        def pack(made: CapturedModel) -> Entry | None:
            if not isinstance(made.module, fx.GraphModule):
                return None
            facts, tensors = pack_graph(made.module)
            again = dataclasses.replace(made, module=unpack_graph(facts, tensors))
            if graph_hash(again) != graph_hash(made) or pack_graph(_graph_of(again))[0] != facts:
                raise NotStorableError("a graph that is another when it is read again")
            return Entry(tensors, {"graph": facts, "style": made.style, "hash": graph_hash(made)})

        def take(entry: Entry) -> CapturedModel | None:
            graph = unpack_graph(entry.facts["graph"], entry.tensors)
            places = tuple(model.signature.output_places()) if model.signature.gives_rows else ()
            found = CapturedModel(graph, entry.facts["style"], examples, places)
            if graph_hash(found) != entry.facts["hash"]:
                return None
            return found if self._agree(model, examples, _answers(graph, batch_channels_last(examples))) else None

        # Pixels have one range. The channels of other inputs are levelled by the ranges of all samples.
        levelled = None if samples is None or samples.preprocess is not None else _samples_hash(samples)
        facets = None if self._model is None else (self._model, recipe.quantize.mode, _tensor_hash(examples), levelled)
        return self._through("capture", facets, progress, make, pack, take)

    def calibrate(
        self,
        fused: FusedModel,
        samples: Samples | None,
        batch_size: int,
        progress: Progress,
        make: Callable[[Progress], CalibratedModel],
    ) -> CalibratedModel:
        """Return the statistics of a fused model's activations on samples: kept, or else made."""
        if samples is None or fused.style == "dynamic":
            return make(progress)

        def take(entry: Entry) -> CalibratedModel:
            return unpack_calibration(entry, fused, samples)

        facets = self._calibration(fused, samples, batch_size)
        return self._through("calibrate", facets, progress, make, pack_calibration, take)

    def observe(
        self,
        calibrated: CalibratedModel,
        samples: Samples,
        batch_size: int,
        progress: Progress,
        make: Callable[[Progress], tuple[dict[str, Seen], FloatArray]],
    ) -> tuple[dict[str, Seen], FloatArray]:
        """Return what a calibrated model's tensors are on other samples, and its outputs: kept, or else made."""

        def pack(made: tuple[dict[str, Seen], FloatArray]) -> Entry:
            seen, outputs = made
            numbers = [dataclasses.astuple(each) for each in seen.values()]
            tensors = {"outputs": tensor_of(outputs), "seen": torch.tensor(numbers, dtype=torch.float64).reshape(-1, 3)}
            return Entry(tensors, {"names": list(seen)})

        def take(entry: Entry) -> tuple[dict[str, Seen], FloatArray]:
            rows = entry.tensors["seen"].tolist()
            seen = {name: Seen(*row) for name, row in zip(entry.facts["names"], rows, strict=True)}
            return seen, entry.tensors["outputs"].numpy()

        facets = None
        if self.store is not None:
            known = digest([(name, *_extremes(stats)) for name, stats in calibrated.stats.items()])
            facets = self._calibration(calibrated.fused, samples, batch_size)
            facets = None if facets is None else (*facets, known)
        return self._through("observe", facets, progress, make, pack, take)

    def outputs(
        self,
        model: FloatModel,
        graph: fx.GraphModule | None,
        samples: Samples,
        progress: Progress,
        make: Callable[[Progress], FloatArray],
    ) -> FloatArray:
        """Return the FP32 outputs on samples: kept, or else made. The model as loaded must still agree on some."""
        some = samples.spread_rows(_CHECKED_SAMPLES)

        def take(entry: Entry) -> FloatArray | None:
            found: FloatArray = entry.tensors["outputs"].numpy()
            inputs = samples.take(some).tensor(slice(None))
            return found if self._agree(model, inputs, found[some]) else None

        facets = None
        if self._model is not None:
            facets = (self._model, _content(graph), _samples_hash(samples))
        return self._through(
            "outputs", facets, progress, make, lambda made: Entry({"outputs": tensor_of(made)}, {}), take
        )

    def race(self, facets: tuple[Any, ...], progress: Progress, make: Callable[[Progress], list[Any]]) -> list[Any]:
        """Return the measurements of a race as JSON can hold them: kept, or else made.

        ``facets`` say what raced: the hashes of the saved models, and how they ran. FP32 is the model that
        ``identify`` was told.
        """
        facets_or_none = None if self._model is None else (self._model, *facets)
        return self._through(
            "race",
            facets_or_none,
            progress,
            make,
            lambda made: Entry({}, {"made": made}),
            lambda entry: entry.facts["made"],
        )

    def _through(
        self,
        stage: str,
        facets: tuple[Any, ...] | None,
        progress: Progress,
        make: Callable[[Progress], _T],
        pack: Callable[[_T], Entry | None],
        take: Callable[[Entry], _T | None],
    ) -> _T:
        if self.store is None or facets is None:
            return make(progress)
        key = digest(stage, self._surroundings, *facets)
        entry = self.store.get(stage, key, progress.note)
        if entry is not None:
            found = self._taken(stage, key, entry, progress, take)
            if found is not None:
                return found
        recorded = _Recorded(progress)
        made = make(recorded)
        try:
            packed = pack(made)
        except NotStorableError as error:
            progress.note(f"{stage} is not cached: the cache has no form for {error}")
            return made
        if packed is not None:
            facts = {"said": recorded.said, "made": packed.facts}
            self.store.put(stage, key, Entry(packed.tensors, facts, self.label), progress.note)
            self.made.append(stage)
        return made

    def _taken(
        self, stage: str, key: str, entry: Entry, progress: Progress, take: Callable[[Entry], _T | None]
    ) -> _T | None:
        assert self.store is not None
        try:
            said = [(str(kind), str(text)) for kind, text in entry.facts["said"]]
            found = take(dataclasses.replace(entry, facts=entry.facts["made"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            progress.note(f"an entry of the cache cannot be used, so {stage} is made again: {error}")
            found = None
        else:
            if found is None:
                progress.note(f"the model answers otherwise than the cache says, so {stage} is made again")
        if found is None:
            self.store.drop(stage, key)
            return None
        for kind, text in said:
            (progress.warn if kind == "warn" else progress.note)(text)
        progress.note(f"from the cache: {stage_in_words(stage)} ({key[:12]})")
        self.taken.append(stage)
        return found

    def _calibration(self, fused: FusedModel, samples: Samples, batch_size: int) -> tuple[Any, ...] | None:
        """Return what statistics depend on: the fused graph alone, or the user's module with its code."""
        if self.store is None:
            return None
        content = _content(fused.module)
        if content is None or (not isinstance(fused.module, fx.GraphModule) and self._model is None):
            return None
        code = None if isinstance(fused.module, fx.GraphModule) else self._model
        return content, code, _samples_hash(samples), batch_size

    def _agree(self, model: FloatModel, inputs: torch.Tensor, found: FloatArray) -> bool:
        """Whether the model as loaded answers as the cache says: whatever has no hash, such as a file that it reads."""
        expected = _answers(model.module, model.fast_batch(inputs))
        if found.shape != expected.shape:
            return False
        return np.array_equal(found, expected, equal_nan=True) or (
            worst_sqnr_db(model.signature, expected, found) >= _EQUAL_DB
        )


def _file_hash(name: str, loaded: LoadedRecipe) -> str | None:
    path = place_of(name, loaded.path.parent)
    return None if path is None else hash_file(path)


def _answers(module: nn.Module, inputs: torch.Tensor) -> FloatArray:
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        answer: FloatArray = module(inputs.clone()).float().numpy()
    return answer


def _graph_of(captured: CapturedModel) -> fx.GraphModule:
    assert isinstance(captured.module, fx.GraphModule)
    return captured.module


def _content(module: nn.Module | None) -> str | None:
    try:
        return Fingerprint().add(module).hexdigest()
    except (UnknownError, RecursionError, RuntimeError):
        return None


def _samples_hash(samples: Samples) -> str:
    return digest(data_hash(samples), repr(samples.preprocess))


def _tensor_hash(tensor: torch.Tensor) -> str:
    return Fingerprint().add(tensor).hexdigest()


def _extremes(stats: ActivationStats) -> tuple[str, str]:
    return stats.minimum.hex(), stats.maximum.hex()
