"""The base of every settings class: frozen, typed, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings declared once: the YAML, the JSON schema, `key=value` and the docs all come from the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
