"""The server's metrics on the page that Ray writes for Prometheus on each node, with the replica as a label."""

from __future__ import annotations

import re

from ray.serve.metrics import Gauge

from ..serve.metrics import PREFIX

_SAMPLE = re.compile(rf"^({PREFIX}\w+)(?:\{{(.*)\}})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class RayMetrics:
    """Copies samples into gauges of Ray: ``cpupack_queue_seconds_bucket`` becomes ``ray_cpupack_queue_...``.

    All are gauges, also counters: Ray's own counters cannot be set.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def update(self, page: str) -> None:
        """Take over the samples of ``Metrics.text``."""
        for name, labels, value in samples(page):
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = self._gauges[name] = Gauge(name, "see the metrics of serve", tuple(labels))
            gauge.set(value, labels)


def samples(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Return name, labels and value of each sample of this package's metrics on a page of Prometheus."""
    found = [match for line in page.splitlines() if (match := _SAMPLE.match(line)) is not None]
    return [(each[1], dict(_LABEL.findall(each[2] or "")), float(each[3])) for each in found]
