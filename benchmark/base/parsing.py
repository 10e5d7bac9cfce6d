"""Safe readers for JSON and YAML files from other people.

They reject input that a plain parser would accept: repeated keys, deep nesting, aliases that expand without end, integers
beyond 64 bits, and text that cannot be encoded as UTF-8. They accept numbers that are not finite. `benchmark.base.ranges`
checks those, because it knows the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError, shown, whole_message

MAX_BYTES = 16 * 2**20
"""Maximum size of a text file. A model card that lists its training images has a few MiB."""

MAX_YAML_CHARACTERS = 256 * 2**10
"""Maximum number of characters in a YAML text. PyYAML needs seconds for that many."""

MAX_DEPTH = 50
"""Maximum nesting depth of lists and mappings."""

MAX_NODES = 1_000_000
"""Maximum number of keys and values in a JSON file."""

MAX_YAML_NODES = 20_000
"""Maximum number of keys and values in a YAML file. Values behind an alias count each time that they are used."""

MAX_INTEGER = 2**63 - 1


def read_text(path: Path, what: str) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        UserError: the file cannot be read, is not a regular file, is larger than `MAX_BYTES` or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{what}: {path} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{what}: {path} is larger than {MAX_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else whole_message(error)
        raise UserError(f"{what}: cannot read {path}: {reason}") from error


def parse_json(text: str, what: str) -> Any:
    """Parse a JSON text and return its value; `what` names it in error messages.

    Raises:
        UserError: the text is not JSON, repeats a key, or exceeds a limit of this module.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise UserError(f"{what} nests more than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise UserError(f"{what} is not JSON: {whole_message(error)}") from error
    _check_limits(value, what, MAX_NODES)
    return value


def parse_yaml(text: str, what: str) -> Any:
    """Parse a YAML text and return its value in plain types; `what` names it in error messages.

    Raises:
        UserError: the text is not YAML, repeats a key, uses a custom type, or exceeds a limit of this module.
    """
    import yaml

    if len(text) > MAX_YAML_CHARACTERS:
        raise UserError(f"{what} has more than {MAX_YAML_CHARACTERS} characters")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _check_nodes(node, what)
        value = yaml.SafeLoader("").construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not YAML: {whole_message(error)}") from error
    except RecursionError as error:
        raise UserError(f"{what} nests more than {MAX_DEPTH} levels") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:  # from an invalid date or number
        raise UserError(f"{what} holds a value that cannot be read: {whole_message(error)}") from error
    _check_limits(value, what, MAX_YAML_NODES)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice")
        found[key] = value
    return found


def _check_nodes(root: Any, what: str) -> None:
    """Reject repeated keys and too many values.

    The values are counted as if aliases were expanded, before any object is built from them.
    """
    import yaml

    sizes: dict[int, int] = {}

    def size(node: Any, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise UserError(f"{what} nests more than {MAX_DEPTH} levels, or holds itself")
        if id(node) not in sizes:
            if isinstance(node, yaml.MappingNode):
                _check_unique_keys(node, what)
                parts = [part for pair in node.value for part in pair]
            else:
                parts = node.value if isinstance(node, yaml.SequenceNode) else []
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in parts)
        if sizes[id(node)] > MAX_YAML_NODES:
            raise UserError(f"{what} holds more than {MAX_YAML_NODES} values")
        return sizes[id(node)]

    size(root, 0)


def _check_unique_keys(mapping: Any, what: str) -> None:
    keys: set[str] = set()
    for key, _ in mapping.value:
        if isinstance(key.value, str):
            if key.value in keys:
                raise UserError(f"{what} gives the key {shown(key.value)} twice (line {key.start_mark.line + 1})")
            keys.add(key.value)


def _check_limits(value: Any, what: str, max_nodes: int) -> None:
    for count, (item, depth) in enumerate(_nested_items(value)):
        if depth > MAX_DEPTH:
            raise UserError(f"{what} nests more than {MAX_DEPTH} levels")
        if count > max_nodes:
            raise UserError(f"{what} holds more than {max_nodes} values")
        if isinstance(item, int) and abs(item) > MAX_INTEGER:
            raise UserError(f"{what} holds an integer beyond 64 bits: {shown(item)}")
        if isinstance(item, str):
            _check_text(item, what)


def _nested_items(value: Any) -> Iterator[tuple[Any, int]]:
    """Yield every value and every key with its nesting depth."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        yield item, depth
        if isinstance(item, dict):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set):
            pending += [(part, depth + 1) for part in item]


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{what} holds text that cannot be encoded as UTF-8: {shown(text)}") from error
