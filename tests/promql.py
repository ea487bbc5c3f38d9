"""Names and labels in PromQL, of the kind that our rules and dashboards are written in."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))

_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_SELECTOR = re.compile(r"(?<![\w:])([a-zA-Z_:][\w:]*)(?![\w:]|\s*\()\s*(?:\{([^}]*)\})?")
_WINDOW = re.compile(r"\[[^]]*\]|\boffset\s+\w+")
_WORDS = {"and", "or", "unless", "bool"}


@dataclass(frozen=True)
class Expression:
    """PromQL, and where it stands."""

    place: str
    text: str
    legend: str = ""

    @property
    def metrics(self) -> dict[str, set[str]]:
        """Metric -> labels that its selectors match on."""
        found: dict[str, set[str]] = {}
        for name, matchers in _SELECTOR.findall(_WINDOW.sub("", _GROUPING.sub("", self.text))):
            if name not in _WORDS:
                found.setdefault(name, set()).update(_MATCHER.findall(matchers))
        return found

    @property
    def grouping(self) -> set[str]:
        """Labels that are grouped by or matched on."""
        return {label.strip() for labels in _GROUPING.findall(self.text) for label in labels.split(",")}


def rules(kind: str) -> list[Expression]:
    """`kind`: "record" or "alert"; the place is the rule's name."""
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [Expression(rule[kind], rule["expr"]) for group in groups for rule in group["rules"] if kind in rule]


def dashboards() -> dict[Path, dict]:
    """What the list of panels makes, by the file that it belongs into."""
    made = runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))
    return {made["FOLDER"] / f"{one.uid}.json": made["model"](one) for one in made["DASHBOARDS"]}


def panels() -> list[Expression]:
    """Each query of each panel, from the files that Grafana reads."""
    read = [json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))]
    return [
        Expression(f"{board['title']}: {panel['title']}", target["expr"], target["legendFormat"])
        for board in read
        for panel in board["panels"]
        for target in panel["targets"]
    ]
