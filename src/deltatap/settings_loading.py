"""Reads settings from YAML, a dict and ``--set`` overrides, and describes every problem at once.

Each problem has the file and the path of the key. No message contains a value under ``endpoint.api_key``,
``endpoint.headers`` or ``endpoint.proxy``, because people paste keys where the name of a variable is expected. Leaves
the keys to ``config.py``, and the syntax of YAML to ``settings_file.py``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from deltatap import settings_file
from deltatap.config import Settings, problems_between
from deltatap.endpoint import A_PROXY, Source
from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
# Replaces pydantic's wording with words that fit after "expected".
_WORDING = {
    "Input should be ": "",
    "a valid integer": "an integer",
    "a valid ": "a ",
    "greater than": "a number greater than",
    "less than": "a number less than",
    "String should match pattern": "text that matches",
    "String should have": "text with",
}
_A_SECTION = re.compile("a dictionary or instance of .*")


def load_settings(
    source: Settings | Mapping[str, Any] | str | Path,
    overrides: Iterable[str] = (),
) -> Settings:
    """Load settings from a YAML file, a dict or other settings, with overrides.

    Args:
        source: the path of a YAML file, its content as a dict, or settings.
        overrides: ``a.b=c``. An empty ``c`` sets the key to null if it can be null, else to its default.

    Raises:
        ConfigError: lists every problem, as ``file: key.path: what was expected``, with ``--set`` in the place of the
            file if an override set the key.
    """
    if isinstance(source, Settings):
        name, tree = "settings", source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        name, tree = "settings", _copied(source)
    else:
        name, tree = str(source), settings_file.read(Path(source))
    overrides = list(overrides)
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    _spell_booleans(tree)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        # A value with several possible types has one error for each of them.
        described = dict.fromkeys(_described(e) for e in error.errors(include_url=False))
        given = [text.partition("=")[0].strip() for text in overrides]
        problems += [f"--set {text}" if _is_of(text, given) else f"{name}: {text}" for text in described]
    else:
        problems += [f"{name}: {problem}" for problem in problems_between(settings)]
        if not problems:
            return settings
    # `from None`, because pydantic's error contains the input, which can contain an API key.
    raise ConfigError(problems) from None


def _is_of(problem: str, paths: Iterable[str]) -> bool:
    """Whether a problem is of a key at one of the paths, or of a section that a path names."""
    where = problem.partition(":")[0]
    return any(f"{path}.".startswith(f"{where}.") or where.startswith(f"{path}.") for path in paths)


def _spell_booleans(tree: dict[str, Any], path: tuple[str, ...] = ()) -> None:
    """Read ``yes``, ``no``, ``on`` and ``off``, as in YAML 1.1, where a key is true or false."""
    for key, value in tree.items():
        where = (*path, str(key))
        if isinstance(value, dict):
            _spell_booleans(value, where)
        elif isinstance(value, str) and value.lower() in _BOOLEANS and _kinds([*where]) == {bool}:
            tree[key] = _BOOLEANS[value.lower()]


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _override(tree: dict[str, Any], text: str) -> str | None:
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return f"--set {path}: expected a.b=c"
    node = tree
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    kinds = _kinds(keys)
    if value:
        try:
            listed = value.startswith("[") and any(get_origin(kind) is list for kind in kinds)
            sourced = Source in kinds and re.match(r"\{ *(env|secret) *:", value)
            node[keys[-1]] = value if str in kinds and not listed and not sourced else settings_file.parse(value)
        except ValueError:
            return f"--set {path}: the value is not valid YAML"
    elif type(None) in kinds or not kinds:
        node[keys[-1]] = None
    else:
        node.pop(keys[-1], None)
    return None


def _kinds(keys: list[str]) -> set[Any]:
    """The types that the key at this path can have. Empty for an unknown key."""
    kinds: set[Any] = {Settings}
    for key in keys:
        annotations = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
                annotations.append(kind.model_fields[key].annotation)
            elif get_origin(kind) is dict:
                annotations.append(get_args(kind)[1])
        kinds = {kind for annotation in annotations for kind in _alternatives(annotation)}
    return kinds


def _alternatives(annotation: Any) -> list[Any]:  # noqa: ANN401 - type expressions have no common type
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    if origin is Literal:
        return [type(value) for value in get_args(annotation)]
    return [annotation]


def _described(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    path = [str(part) for part in error["loc"]]
    where = ".".join(path) or "settings"
    if error["type"] == "extra_forbidden" and path[:2] not in (["endpoint", "headers"], ["endpoint", "proxy"]):
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = error["msg"]
    for theirs, ours in _WORDING.items():
        message = message.replace(theirs, ours)
    message = _A_SECTION.sub("a mapping of keys", message)
    if "api_key" in path:
        return (
            f"{where}: expected {{env: NAME}}, the name of an environment variable that holds the key, "
            "{secret: scope/key}, {identity: azure} or {identity: databricks}, or null"
        )
    if path[:2] == ["endpoint", "headers"]:
        return f"{'.'.join(path[:3])}: expected text, {{env: NAME}} or {{secret: scope/key}}"
    if path[:2] == ["endpoint", "proxy"]:
        return f"endpoint.proxy: expected {A_PROXY}, {{env: NAME}}, {{secret: scope/key}} or null"
    value = error.get("input")
    found = f", found {value!r}" if isinstance(value, str | int | float | bool) or value is None else ""
    quote = "; write it in quotes" if error["type"] == "string_type" and isinstance(value, float | int) else ""
    return f"{where}: expected {message}{found}{quote}"


def _known_keys(path: list[str]) -> list[str]:
    return sorted(
        key
        for kind in (_kinds(path) if path else {Settings})
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for key in kind.model_fields
    )
