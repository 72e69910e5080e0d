"""YAML as settings files use it: the core schema of YAML 1.2, in which a date, ``0755`` or ``1:30`` is text.

Knows how text becomes plain values, and refuses a key that is set twice. Leaves the meaning of keys to
``settings_loading.py``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from deltatap.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

# https://yaml.org/spec/1.2.2/#103-core-schema, with the underscores of YAML 1.1. A number with leading zeros is text,
# because it is an octal number in YAML 1.1 and a decimal one in YAML 1.2.
_NUMBER = r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*|(?=[eE])))(?:[eE][-+]?[0-9]+)?"
_TYPES = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (rf"{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """A safe loader with these types. The keys of a mapping are text, as they were written."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in the base class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"{key.value} is set twice, first on line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
            key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


for _name, (_pattern, _first) in _TYPES.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:  # noqa: ANN401 - any YAML
    """The value of a YAML document.

    Raises:
        ValueError: if it is not valid; the message says where.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        raise ValueError(f"{where}is not valid YAML: {problem}") from None
    except RecursionError:
        raise ValueError("is not valid YAML: it is nested too deeply") from None
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"is not valid YAML: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The sections in a file; none if it is empty.

    Raises:
        ConfigError: if the file cannot be read, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; pass another file with --config"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text (byte {error.start})"]) from None
    try:
        tree = parse(text)
    except ValueError as error:
        where = str(error)
        raise ConfigError([f"{path}{', ' if where.startswith('line ') else ': '}{where}"]) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: expected a mapping of sections, found {type(tree).__name__}"])
    return tree
