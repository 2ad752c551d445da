"""What another build would measure differently: taken out of ``build.json`` for the lock, and put back from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpupack.artifacts import Gate, Recovery, Trial

_WHOLE = "engines", "plan", "stages_s", "warnings", "recovery", "measured"
_OF_REPORT = "speedup", "speedup_ci95", "speed_rows", "gates"


def measured_of(build: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements in a ``build.json``: the race, the search for a setting, all times, and the host."""
    found: dict[str, Any] = {name: build[name] for name in _WHOLE if name in build}
    found["report"] = {name: build["report"][name] for name in _OF_REPORT if name in build["report"]}
    found["time_shares"] = [layer["time_share"] for layer in build.get("layers", ())]
    return found


def replayed(facts: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a build with the measurements of an earlier one, in the order of ``facts``."""
    found = {name: measured.get(name, value) if name in _WHOLE else value for name, value in facts.items()}
    found["report"] = {**found["report"], **measured["report"]}
    shares = measured["time_shares"]
    if shares and len(shares) == len(found.get("layers", ())):
        found["layers"] = [{**layer, "time_share": share} for layer, share in zip(found["layers"], shares, strict=True)]
    return found


def recovery_of(measured: Mapping[str, Any]) -> Recovery | None:
    """Return the recovery of an earlier build from its measurements, None where there was none."""
    raw = measured.get("recovery")
    if not raw:
        return None
    trials = []
    for trial in raw["trials"]:
        fields = {name: value for name, value in trial.items() if name != "pareto"}
        trials.append(Trial(**{**fields, "gates": tuple(Gate(**gate) for gate in trial["gates"])}))
    return Recovery(**{**raw, "trials": tuple(trials), "pareto": tuple(raw["pareto"])})
