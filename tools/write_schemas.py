"""JSON Schemas of the files that others read and write: lines of results.jsonl, and plans of `promptprior compare`.

    python tools/write_schemas.py          # writes docs/schemas; a test compares them with the code

Both come from the dataclasses that read the files (`config.mapping.from_mapping`), with their help texts as
descriptions. A schema knows types, bounds and names of keys; what two keys must be together only reading tells.
"""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union

from promptprior.compare.plan import Plan
from promptprior.config.mapping import to_mapping
from promptprior.report.results import Row

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
SCHEMAS: Mapping[str, tuple[type, str]] = {
    "results.schema.json": (Row, "A line of results.jsonl: one cell of a comparison"),
    "plan.schema.json": (Plan, "A plan of promptprior compare, as YAML or as the plan.yaml beside results"),
}
PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string", types.NoneType: "null"}


def schema_of(hint: Any, metadata: Mapping[str, Any] = types.MappingProxyType({})) -> dict[str, Any]:
    """The schema of a type, with the bounds that a field's metadata gives its number or the numbers of its list."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return schema_of_dataclass(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(member, metadata) for member in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple and inner[-1] is Ellipsis:
        least = {"minItems": 1} if metadata.get("at_least_one") else {}
        return {"type": "array", "items": schema_of(inner[0], metadata), **least}
    if origin is tuple:
        return {"type": "array", "prefixItems": [schema_of(part) for part in inner], "minItems": len(inner)}
    if origin is not None:  # a mapping
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    if hint not in PLAIN:
        return {}  # Any
    words = {"least": "minimum", "above": "exclusiveMinimum", "most": "maximum"}
    is_number = hint in (int, float)
    bounds = {word: metadata[key] for key, word in words.items() if is_number and metadata.get(key) is not None}
    return {"type": PLAIN[hint], **bounds}


def schema_of_dataclass(cls: Any) -> dict[str, Any]:
    """An object with exactly the dataclass's fields; those without a default are required."""
    hints, properties, required = typing.get_type_hints(cls), dict[str, Any](), []
    for item in fields(cls):
        if not item.init or item.metadata.get("fact"):
            continue
        made = schema_of(hints[item.name], item.metadata)
        if text := item.metadata.get("help"):
            made["description"] = text
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if default is MISSING:
            required.append(item.name)
        elif not is_dataclass(hints[item.name]):
            made["default"] = to_mapping(default)
        properties[item.name] = made
        if first := item.metadata.get("formerly"):
            properties[first] = {**made, "description": f"what {item.name} was called first", "deprecated": True}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def write(folder: Path = FOLDER) -> None:
    """Write every schema into a folder."""
    for name, (cls, title) in SCHEMAS.items():
        whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema_of_dataclass(cls)}
        (folder / name).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
