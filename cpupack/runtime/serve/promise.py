"""Which setting keeps the promise, how long its calls take, and the rate that it carries."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..bench.server import shapes_up_to
from ..capacity import planning
from ..capacity.profiles import CallTime as MeasuredCall
from ..capacity.profiles import Profile, measured_rows, profiles
from ..errors import HostError, InputError
from ..host.limits import why_no_thread
from ..host.probe import HostProbe
from ..manifest import Manifest, read_manifest
from ..plan import decide as planning_of_host
from .model import IMAGE, Data, ServedModel
from .options import ServeOptions
from .times import CallTime, PrepareTimes

_MEASURE_S = 0.25
_FEWEST_CALLS = 20
_MOST_S = 2.0
_TRIES = 3
_STALLED = 4.0
"""Times the median: a p99 above it says that the host stood still while calls were timed."""
_PHOTO = (640, 480)


@dataclass(frozen=True)
class Setting:
    """Threads of an instance, instances and batch size (None: as the plan says), and the profile if it was tuned."""

    threads: int | None
    instances: int | None
    batch_size: int | None
    profile: Profile | None
    source: str

    def table(self, model: ServedModel) -> list[CallTime]:
        """Return the call times up to the batch size: from the tuned table, else measured now."""
        if self.profile is not None and self.profile.calls[-1].size >= model.batch_size:
            calls = [call for call in self.profile.calls if call.size <= model.batch_size]
            found = [CallTime(call.size, call.mean_ms / 1000.0, call.p99_ms / 1000.0) for call in calls]
            if found and found[-1].size == model.batch_size:
                return found
        return measure(model)


def choose_setting(package_dir: Path, options: ServeOptions) -> Setting:
    """Return the setting: what the options give, else what carries most within the promise, else the plan's.

    Raises HostError for a promise that no tuned setting can hold.
    """
    manifest = read_manifest(package_dir)
    own = (options.threads, options.instances, options.batch_size)
    try:
        rows, source = measured_rows(package_dir, manifest, os.environ, HostProbe())
    except InputError:
        return Setting(*own, None, "measured at the start")
    measured = _undisturbed(rows)
    if not measured:
        return Setting(*own, None, "measured at the start: other work disturbed the tuned table")
    explicit = own != (None, None, None)
    if options.max_latency_ms is not None and not explicit:
        best = planning.highest_load(measured, options.max_latency_ms - planning.HTTP_MS)
        if best is None:
            fastest = min(call.p99_ms for one in measured for call in one.calls)
            raise cannot_hold(options.max_latency_ms, fastest + planning.HTTP_MS)
        return Setting(
            best.threads, best.instances, best.batch_size, _profile(measured, best.threads, best.instances), source
        )
    plan = planning_of_host.decide(
        manifest, threads=options.threads, instances=options.instances, batch_size=options.batch_size
    )
    return Setting(
        plan.threads, plan.instances, plan.batch_size, _profile(measured, plan.threads, plan.instances), source
    )


def _undisturbed(rows: Sequence[Mapping[str, Any]]) -> list[Profile]:
    """Return the layouts whose calls of one sample were measured, from rows that other work did not disturb.

    A search that ended after its first setting, or on a busy host, says nothing of one request alone: a call of eight
    samples that waited for the CPU would stand for it, and a promise that is easy to hold would be refused.
    """
    quiet = [row for row in rows if not row.get("disturbed")]
    return [one for one in profiles(quiet) if one.calls[0].size == 1]


def measure(model: ServedModel) -> list[CallTime]:
    """Return the time of calls of each size while all instances are busy.

    Takes a quarter of a second a size, and up to three where the host stood still meanwhile.
    """
    return [call_time(size, partial(_busy, model, size)) for size in shapes_up_to(model.batch_size)]


def call_time(size: int, run: Callable[[], npt.NDArray[np.float64]]) -> CallTime:
    """Return the time of calls of ``size``, of which ``run`` returns some in seconds.

    A host that stands still for a moment makes one call of that quarter of a second take as long. Such a row would
    stand for all the life of the server, so it is measured again, and the best one counts.
    """
    found: list[CallTime] = []
    for _ in range(_TRIES):
        took_s = run()
        mean_s, p99_s = float(took_s.mean()), float(np.percentile(took_s, 99))
        found.append(CallTime(size, mean_s, max(mean_s, p99_s)))
        if p99_s <= _STALLED * float(np.median(took_s)):
            break
    return min(found, key=lambda one: one.p99_s)


def learn_decoding(model: ServedModel, prepare: PrepareTimes) -> float:
    """Decode a photo a few times, so that the first predictions are right. Returns seconds for one, 0 for arrays."""
    if not model.takes_images:
        return 0.0
    photo = example_photo(model)
    took_s = []
    for _ in range(8):
        begin_s = time.monotonic()
        model.prepare(Data(IMAGE, [photo]))
        took_s.append(time.monotonic() - begin_s)
    prepare.observe(IMAGE, len(photo), float(np.median(took_s)))
    return float(np.median(took_s))


def example_photo(model: ServedModel) -> bytes:
    """Return a JPEG of about 100 KB: noise of the grain that photos have."""
    generator = np.random.default_rng(0)
    width, height = _PHOTO
    preprocess = model.runner.manifest.preprocess or {}
    if preprocess.get("crop") is None and not isinstance(preprocess.get("resize"), list):
        height, width = model.runner.manifest.input_shape[1:]  # nothing brings another photo to the model's size
    small = generator.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    if preprocess.get("mode") == "L":
        image = image.convert("L")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def check_promise(max_latency_ms: float | None, table: Sequence[CallTime], decoding_s: float) -> None:
    """Raise HostError when one request alone takes longer than the promise."""
    if max_latency_ms is None:
        return
    takes_ms = 1000.0 * (min(call.p99_s for call in table) + decoding_s) + planning.HTTP_MS
    if takes_ms > max_latency_ms:
        raise cannot_hold(max_latency_ms, takes_ms)


def cannot_hold(max_latency_ms: float, takes_ms: float) -> HostError:
    """Return the error for a promise that is too short."""
    return HostError(
        f"{max_latency_ms:g} ms cannot be held here: one request takes {takes_ms:.3g} ms; promise more, or `tune` with "
        "--objective latency, or serve a faster model or on a faster host"
    )


def carried(
    manifest: Manifest,
    setting: Setting,
    table: Sequence[CallTime],
    model: ServedModel,
    decoding_s: float,
    max_latency_ms: float,
) -> dict[str, Any]:
    """Return the rate that the setting carries with the promise, for tensors and for images: JSON of ``--plan``."""
    plan = model.runner.plan
    rates: dict[str, Any] = {}
    for kind, extra_s in (("tensors", 0.0), *((("images", decoding_s),) if model.takes_images else ())):
        calls = tuple(
            MeasuredCall(
                one.size, 1000.0 * (one.mean_s + one.size * extra_s), 1000.0 * (one.p99_s + one.size * extra_s)
            )
            for one in table
        )
        best = planning.highest_load([Profile(plan.threads, plan.instances, calls)], max_latency_ms - planning.HTTP_MS)
        rates[kind] = None if best is None else asdict(best)
    return {
        "max_latency_ms": max_latency_ms,
        "threads": plan.threads,
        "instances": plan.instances,
        "batch_size": model.batch_size,
        "one_request_ms": 1000.0 * (table[0].p99_s + decoding_s) + planning.HTTP_MS,
        "decoding_ms": 1000.0 * decoding_s,
        "carries": rates,
        "call_times": setting.source,
        "model": planning.MODEL,
        "manifest": {"name": manifest.name, "version": manifest.version},
    }


def format_carried(found: dict[str, Any]) -> str:
    """Return the answer of ``--plan`` as lines for a terminal."""
    lines = [
        f"a promise of {found['max_latency_ms']:g} ms on this host: {found['instances']} x {found['threads']} threads, "
        f"batch up to {found['batch_size']}; one request alone takes {found['one_request_ms']:.3g} ms"
    ]
    for kind, best in found["carries"].items():
        what = f"{kind} (a JPEG of 100 KB decodes in {found['decoding_ms']:.2g} ms)" if kind == "images" else kind
        if best is None:
            lines.append(f"  {what}: none within the promise")
        else:
            lines.append(f"  {what}: up to {best['rate_per_s']:,.0f} requests/s, then p99 {best['p99_ms']:.1f} ms")
    return "\n".join([*lines, f"  call times: {found['call_times']}", "  more are refused at once, with a Retry-After"])


def _profile(measured: Sequence[Profile], threads: int, instances: int) -> Profile | None:
    return next((one for one in measured if (one.threads, one.instances) == (threads, instances)), None)


def _busy(model: ServedModel, size: int) -> npt.NDArray[np.float64]:
    """Run calls of one size on all instances at once, and return how long each took."""
    instances = model.runner.plan.instances
    batch = model.runner.example(size)
    took: list[list[float]] = [[] for _ in range(instances)]
    failed: list[BaseException] = []
    together = threading.Barrier(instances)

    def run(number: int) -> None:
        try:
            together.wait()
            begin_s = last_s = time.monotonic()
            while last_s - begin_s < _MEASURE_S or (len(took[number]) < _FEWEST_CALLS and last_s - begin_s < _MOST_S):
                model.runner.pool.run(batch, number)
                now_s = time.monotonic()
                took[number].append(now_s - last_s)
                last_s = now_s
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            failed.append(error)

    # Ctrl-C of ``--plan`` may strike while they start. It ends the process; the barrier lets them go first.
    threads = [threading.Thread(target=run, args=(number,)) for number in range(instances)]
    try:
        for thread in threads:
            thread.start()
    except BaseException as error:
        together.abort()  # those that have started wait for the rest
        if isinstance(error, RuntimeError):  # "can't start new thread"
            raise HostError(why_no_thread()) from error
        raise
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return np.concatenate([np.array(times[1:] or times) for times in took])
