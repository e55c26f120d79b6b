"""Layers of settings laid over one another: file, environment, key=value; each leaf remembers where it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.configuring.reader import Key, Tree, read_value
from tunesmith.errors import Fix, TunesmithError, UsageError, Where

PREFIX = "TUNESMITH__"
_NOWHERE = Where()
Kind = Literal["default", "file", "environment", "override"]
RANK: dict[Kind, int] = {"default": 0, "file": 1, "environment": 2, "override": 3}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from; `text` is what was written there."""

    kind: Kind
    where: Where = _NOWHERE
    text: str | None = None

    def __str__(self) -> str:
        return "default" if self.kind == "default" else str(self.where)


DEFAULT = Origin("default")


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


@dataclass(slots=True)
class Layers:
    """The merged tree so far; `expand` writes shorthands out, `unions` names the tag of each group with variants.

    `follow` takes origins along where `expand` moves what they are of.
    """

    expand: Callable[[Any], Any]
    follow: Callable[[Any, Mapping[Key, Origin]], dict[Key, Origin]]
    unions: Mapping[Key, str]
    value: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)

    def add_file(self, tree: Tree, file: str) -> None:
        """Lay the recipe file down; it must be an object at the top."""
        if tree.value is None:
            tree.value = {}
        if not isinstance(tree.value, dict):
            raise UsageError(
                "E011", "a recipe is an object of sections, this is not one", where=Where(file, 1),
                fixes=["tunesmith init recipe.yaml"],
            )  # fmt: skip
        self.value = tree.value
        self.origins = {key: Origin("file", where, tree.texts.get(key)) for key, where in tree.places.items()}
        self._expand()

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Read `TUNESMITH__TRAIN__OPTIMIZER__LR=1e-4`: two underscores between the parts of the key."""
        for name in sorted(environment):
            if name.startswith(PREFIX):
                key = tuple(name[len(PREFIX) :].lower().split("__"))
                text = environment[name]
                origin = Origin("environment", Where("environment", field=f"{name}={text}"), text)
                self._put(key, text, origin)

    def add_override(self, override: str) -> None:
        """Read one `a.b.c=value` of the command line."""
        name, equals, text = override.partition("=")
        name = name.strip()
        where = Where("command line", field=override)
        if not equals or not name or any(not part for part in name.split(".")):
            fix = Fix(f"write {override.lstrip('-').replace(' ', '=') or 'train.steps'}=VALUE")
            raise UsageError("E016", f"{override!r} is not key=value", where=where, fixes=[fix])
        self._put(tuple(name.split(".")), text.strip(), Origin("override", where, text.strip()))

    def origin(self, key: Key) -> Origin:
        """The origin of the key or of the nearest group around it that was written somewhere."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return DEFAULT

    def _put(self, parts: tuple[str, ...], text: str, origin: Origin) -> None:
        try:
            value = read_value(text)
        except TunesmithError as error:
            raise type(error)(
                "E016", f"the value is not readable: {error.diagnostic.message}", where=origin.where
            ) from error
        key = self._descend(parts, origin)
        self._forget(key)
        self._switch_tag(key, value, origin)
        self._at(key[:-1])[key[-1]] = value
        self.origins[key] = origin
        self._expand()

    def _expand(self) -> None:
        self.origins = self.follow(self.value, self.origins)
        self.value = self.expand(self.value)

    def _at(self, key: Key) -> Any:
        node: Any = self.value
        for part in key:
            node = node[part]
        return node

    def _descend(self, parts: tuple[str, ...], origin: Origin) -> Key:
        """Make every group on the way exist and turn list positions into numbers."""
        key: Key = ()
        here: Any = self.value
        for index, part in enumerate(parts):
            if isinstance(here, list):
                if not part.isascii() or not part.isdigit() or len(part) > 6 or int(part) > len(here):
                    message = f"{dotted(key)} has {len(here)} entries: {part!r} is not a position from 0 to {len(here)}"
                    raise UsageError("E016", message, where=origin.where)
                key = (*key, int(part))
                if int(part) == len(here):
                    here.append(None)
            elif isinstance(here, dict):
                key = (*key, part)
                here.setdefault(part, None)
            else:
                raise UsageError("E016", f"{dotted(key)} is {here!r}, not a group of settings", where=origin.where)
            if index + 1 < len(parts):
                parent: Any = here
                here = parent[key[-1]]
                if here is None:
                    here = parent[key[-1]] = [] if parts[index + 1].isdigit() else {}
        return key

    def _forget(self, key: Key) -> None:
        for known in [known for known in self.origins if known[: len(key)] == key]:
            del self.origins[known]

    def _switch_tag(self, key: Key, value: Any, origin: Origin) -> None:
        """Naming another method drops what lower layers said of the old one: it described something else."""
        group = key[:-1]
        if self.unions.get(group) != key[-1]:
            return
        settings = self._at(group)
        if settings.get(key[-1]) in (None, value):
            return
        for name in list(settings):
            if name != key[-1] and RANK[self.origin((*group, name)).kind] < RANK[origin.kind]:
                del settings[name]
                self._forget((*group, name))
