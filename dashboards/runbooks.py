"""Where the runbook of an alert is: as `rules.yml` has it, so that there is one place to set it."""

from functools import cache
from pathlib import Path
from typing import Final

import yaml

RULES: Final = Path(__file__).parent / "rules.yml"


@cache
def _urls() -> dict[str, str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = (rule for group in groups for rule in group["rules"])
    return {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}


def url_of(alert: str) -> str:
    """Address of the runbook of an alert; KeyError when there is no such alert."""
    return _urls()[alert]


def url_by_field(field: str) -> str:
    """The same, of the alert that a field of a row names, for Grafana to fill in."""
    folder, _, _ = next(iter(_urls().values())).rpartition("/")
    return f"{folder}/${{__data.fields.{field}}}.md"
