"""Metrics of a Triton model that Triton does not keep itself. `pb_utils` is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class CountGauge:
    """Counts by a label, exported where they have changed: each call of Triton's goes to another process.

    Two models must not make a metric of one name in two ways: parallel loads then end the server (24.10).
    """

    def __init__(
        self, pb_utils: Any, name: str, description: str, label: str, values: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        """`counts` is looked at by `tell`; of it only `values` of the label."""
        # Held, since a family that is gone takes its metrics with it.
        self._family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
        self._metrics = {value: self._family.Metric(labels={label: value}) for value in values}
        self._counts = counts
        self._told: dict[str, int] = {}

    def tell(self) -> None:
        """Export what has changed."""
        for value, metric in self._metrics.items():
            if self._told.get(value) != self._counts[value]:
                self._told[value] = self._counts[value]
                metric.set(self._counts[value])
