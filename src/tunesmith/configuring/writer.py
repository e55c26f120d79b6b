"""Writes settings as YAML that our own reader takes back unchanged."""

from __future__ import annotations

from typing import Any

import yaml

from tunesmith.configuring.reader import read_scalar


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.2 would read as something else, and never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if read_scalar(text) is text and text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _float(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _float)


def write_yaml(value: dict[str, Any]) -> str:
    """Plain data as block YAML in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
