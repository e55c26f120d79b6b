"""Writes settings as YAML that our own reader takes back unchanged."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.configuring.reader import read_scalar

_TAGS = {bool: "bool", int: "int", float: "float", type(None): "null", str: "str"}


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of YAML 1.2 or of 1.1 would take for something else, and never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        found = _TAGS[type(read_scalar(value))] if kind is yaml.ScalarNode and implicit[0] else "str"
        return super().resolve(kind, value, implicit) if found == "str" else f"tag:yaml.org,2002:{found}"


def _float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(float, _float)


def write_yaml(value: dict[str, Any]) -> str:
    """Plain finite data as block YAML in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
