"""deploy/prometheus/rules as the object that the Prometheus operator reads.

python -m deploy.k8s.rules      # writes components/prometheus-operator/rules.yaml; `make k8s-rules`
"""

from __future__ import annotations

import yaml

from deploy.k8s.rendered import K8S, ROOT, Manifest

RULES = ROOT / "deploy" / "prometheus" / "rules"
OBJECT = K8S / "components" / "prometheus-operator" / "rules.yaml"


def rules() -> Manifest:
    """Every group of every file, in the order of their names."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    groups = [group for file in files for group in file["groups"]]
    metadata = {"name": "pinrec"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata,
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    head = "# Written by `make k8s-rules` from deploy/prometheus/rules.\n"
    OBJECT.write_text(head + yaml.safe_dump(rules(), sort_keys=False, width=120))
