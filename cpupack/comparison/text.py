"""A comparison as a table for a terminal, and as a page."""

from __future__ import annotations

import math

from cpupack.comparison.result import Comparison, Figures
from cpupack.comparison.run import Entry
from cpupack.peers import COMPARED
from cpupack.runtime.tune.space import Setting


def format_table(found: Comparison) -> str:
    """Return the comparison for a terminal, 100 columns wide."""
    manifest, options, samples = found.subject.manifest, found.options, found.subject.reference.samples
    source = found.subject.recipe.recipe.model.source
    lines = [f"{manifest.name} {manifest.version} ({source}) on {found.subject.job.cores} cores of {found.host['cpu']}"]
    lines.append(f"input: {found.input_text}")
    if found.subject.model.random_weights:
        lines.append("random weights: the speed is real, but the outputs mean nothing, and so do SQNR and agreement")
    heading = f"{'':<12}{'input':<9}{'best setting':<16}{'samples/s':>10}  {'cpupack is faster by':<22}"
    lines += ["", f"{heading}{'SQNR':>9}{'agree':>8}"]
    for entry in found.entries.values():
        row = found.modes["throughput"].engines.get(entry.name)
        lines.append(_throughput_line(entry, options.input_of(entry.name), row))
    lines += ["", f"{'one request, all cores':<28}{'p50 ms':>10}  {'cpupack is faster by':<22}{'p99 ms':>9}"]
    for entry in found.entries.values():
        lines += _latency_lines(entry, found.modes["latency"].engines.get(entry.name))
    if (mode := found.modes.get("end_to_end")) is not None:
        heading = f"from {mode.files} JPEG files"
        lines += ["", f"{heading:<28}{'images/s':>10}  cpupack is faster by"]
        for name, row in mode.engines.items():
            lines.append(f"{name:<28}{row.median:>10,.1f}  {_ratio_text(row)}".rstrip())
    lines += [*_output_lines(found), "", *_verdict(found)]
    lines += ["", f"faster by: median of {options.rounds} paired rounds, 95 % interval; outputs against FP32 on "]
    lines[-1] += f"{len(samples)} samples ({samples.origin})"
    lines += [f"{entry.name}: {entry.settings}" for entry in found.entries.values() if entry.settings]
    return "\n".join(lines)


def render_html(found: Comparison) -> str:
    """Return the comparison as one page without scripts."""
    from cpupack.templates import render

    return render(
        "report/compare.html.j2",
        found=found.to_dict(),
        title=_title,
        setting_text=_setting_of,
        db_text=db_text,
        percent_text=percent_text,
    )


def _verdict(found: Comparison) -> list[str]:
    """Return a line for each mode with the best other engine, and the share of the CPU's INT8 peak."""
    lines = []
    for name, words in (("throughput", "throughput"), ("latency", "batch-1 p50"), ("end_to_end", "JPEG to output")):
        mode = found.modes.get(name)
        if mode is not None and mode.best_peer is not None:
            ratio = _ratio_text(mode.engines[mode.best_peer])
            lines.append(f"{words}: {ratio} of the best other engine, {mode.best_peer}")
    if peak := found.peak:
        lines.append(
            f"INT8 peak: {peak.cpupack_share.median:.0%} of {peak.macs_per_s / 1e9:,.0f} G multiply-adds/s, "
            "measured in the same rounds"
        )
    return lines


def _throughput_line(entry: Entry, given: str, row: Figures | None) -> str:
    if row is None:
        return f"{entry.name:<12}{entry.status}: {entry.reason}"
    assert entry.setting is not None
    assert entry.closeness is not None
    close = entry.closeness
    return (
        f"{entry.name:<12}{given:<9}{setting_text(entry.setting):<16}{row.median:>10,.1f}  {_ratio_text(row):<22}"
        f"{db_text(close.sqnr_db):>9}{percent_text(close.agreement):>8}"
    )


def _output_lines(found: Comparison) -> list[str]:
    """Return a table of the SQNR of each output, where there are several."""
    names = [each.name for each in found.subject.model.signature.outputs]
    if len(names) == 1:
        return []
    known = {each.name: each.closeness for each in found.entries.values() if each.closeness is not None}
    width = max(28, *(len(name) + 2 for name in names))
    lines = ["", f"{'SQNR of each output':<{width}}" + "".join(f"{name:>13}" for name in known)]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{db_text(each.by_output[name]):>13}" for each in known.values()))
    return lines


def _latency_lines(entry: Entry, row: Figures | None) -> list[str]:
    if row is not None:
        return [f"{entry.name:<28}{row.p50_ms:>10.2f}  {_ratio_text(row):<22}{row.p99_ms:>9.2f}"]
    # Engines that failed earlier already have a line in the first table.
    return [f"{entry.name:<28}{entry.status}: {entry.reason}"] if entry.closeness is not None else []


def setting_text(setting: Setting) -> str:
    """Return ``2x1 batch 8``: instances x threads."""
    return f"{setting.instances}x{setting.threads} batch {setting.batch_size}"


def percent_text(share: float | None) -> str:
    """Return a share in percent, nothing where there is none."""
    return "" if share is None else f"{share:.1%}"


def db_text(value: float | None) -> str:
    """Return decibels, ``equal`` for infinite ones, nothing where there are none."""
    if value is None:
        return ""
    return "equal" if math.isinf(value) and value > 0 else f"{value:.1f} dB"


def _ratio_text(row: Figures) -> str:
    return f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})" if row.ratio else ""


def _setting_of(setting: dict[str, int]) -> str:
    return setting_text(Setting(**setting))


def _title(name: str) -> str:
    return COMPARED[name].title
