"""How large the batches were that Triton made, by its own counts."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

REQUESTS, EXECUTIONS = "nv_inference_count", "nv_inference_exec_count"
_TIMEOUT_S = 10


@dataclass(frozen=True)
class Counts:
    """Requests that a model answered, and the batches that it answered them in, since its start."""

    requests: float = 0.0
    executions: float = 0.0


def read_counts(metrics_address: str) -> dict[str, Counts]:
    """By model, from the metrics port of a Triton ("host:port")."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=_TIMEOUT_S) as page:
        return parse_counts(page.read().decode())


def parse_counts(text: str) -> dict[str, Counts]:
    """By model, from what the metrics port answers."""
    found: dict[str, dict[str, float]] = {REQUESTS: {}, EXECUTIONS: {}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name in found else ():
            model = sample.labels["model"]
            found[family.name][model] = found[family.name].get(model, 0.0) + sample.value
    return {model: Counts(requests, found[EXECUTIONS][model]) for model, requests in found[REQUESTS].items()}


def mean_batches(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> dict[str, float]:
    """Mean size of the batches between two looks, of each model that ran meanwhile."""
    sizes = {}
    for model, now in after.items():
        then = before.get(model, Counts())
        if (executions := now.executions - then.executions) > 0:
            sizes[model] = (now.requests - then.requests) / executions
    return sizes
