"""What is wrong with a value of a declared type, in words.

pydantic finds the problems. Its locations pass through names that stand in no file (members and tags of unions),
and it reports one error a member; here each problem gets its real path, one sentence, and the nearest valid name.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raynn.errors import did_you_mean
from raynn.settings import Settings

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong at `path`; `kind` is pydantic's name for it, `value` what stands there."""

    path: Path
    kind: str
    message: str
    value: Any = None

    @property
    def on_key(self) -> bool:
        """Whether the key, not its value, is wrong."""
        return self.kind in ("extra_forbidden", "missing")

    def __str__(self) -> str:
        """`dotted.path = value: message`; no value where it is a whole section, or the key is wrong."""
        name = dotted(self.path)
        if self.on_key or isinstance(self.value, dict):
            return f"{name}: {self.message}" if name else self.message
        return f"{name} = {show(self.value)}: {self.message}" if name else self.message


def dotted(path: Path) -> str:
    """`("data", "train", 1)` as `data.train[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def show(value: Any, limit: int = 80) -> str:
    """A value as one would write it in a job file, cut to `limit` characters."""
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {show(item, limit)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item, limit) for item in value) + "]"
    elif isinstance(value, float) and not math.isfinite(value):
        text = f"{value:+}".replace("+", "").replace("inf", ".inf").replace("nan", ".nan")
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hinted(text: str, name: str, valid: Iterable[str]) -> str:
    """A sentence, with the nearest valid name after it where one is near; capitals do not count."""
    names = list(valid)
    hint = did_you_mean(name, names) or did_you_mean(name.lower(), names)
    return f"{text}.{hint}" if hint else text


def problems_in(annotation: Any, value: JsonValue, at: Path = (), root: Any = None) -> list[Problem]:
    """All problems of `value`, plain data as read from a file, as a value of the type `annotation`.

    `root` is the type of the whole file (default: `annotation`), searched for the home of a misplaced key.
    """
    root = annotation if root is None else root
    config = None if is_section(annotation) else ConfigDict(strict=True, allow_inf_nan=False)
    try:
        TypeAdapter[Any](annotation, config=config).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found: dict[Path, list[Problem]] = {}
        for details in error.errors(include_url=False):
            path, problems = _locate(dict(details), annotation, value, at, root)
            # A union has one error for each of its members: all explained by the first.
            found.setdefault(path, problems or [Problem(path, details["type"], details["msg"], value)])
        return [problem for problems in found.values() for problem in problems]
    return []


def split(annotation: Any, name: str) -> Path:
    """The path of a dotted name in the type `annotation`; a number after a list's name is a place in it (0: the first).

    Not simply `name.split(".")`: the keys of `search.space` and of `data.columns` may have dots themselves.
    """
    path: Path = ()
    parts = name.split(".")
    while parts and annotation is not None:
        if (of_key := _dict_values(annotation)) is not None:
            ends_inside = len(parts) > 1 and parts[-1] in fields_of(of_key)
            return (*path, ".".join(parts[:-1]), parts[-1]) if ends_inside else (*path, ".".join(parts))
        if (item := _list_items(annotation)) is not None and parts[0].isdigit():
            annotation, path = item, (*path, int(parts.pop(0)))
            continue
        annotation = fields_of(annotation).get(parts[0])
        path = (*path, parts.pop(0))
    return (*path, *parts)


def is_section(annotation: Any) -> bool:
    """Whether a type is a `Settings` class."""
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, nested ones too, without None; any other type alone."""
    bare = _without_metadata(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return tuple(inner for member in get_args(bare) for inner in members_of(member) if inner is not type(None))
    return (annotation,)


def fields_of(annotation: Any) -> dict[str, Any]:
    """Name and type of the keys of a section, or of all sections of a union."""
    sections = (_fields_of_section(member) for member in members_of(annotation) if is_section(member))
    return {name: field for section in sections for name, field in section.items()}


@cache
def _fields_of_section(section: type[Settings]) -> dict[str, Any]:
    return {name: _field_type(field) for name, field in section.model_fields.items()}


def describe(annotation: Any) -> str:
    """What values a type takes: `an integer`, `text or a list of text`."""
    sections = [member for member in members_of(annotation) if is_section(member)]
    words = [_describe_one(member) for member in members_of(annotation) if not is_section(member)]
    if len(sections) == 1:
        words.append(f"a section with {_quoted(fields_of(sections[0]))}")
    elif sections:
        words.append(f"a section with one of the keys {_quoted(fields_of(annotation))}")
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _describe_one(annotation: Any) -> str:
    bare, arguments = _without_metadata(annotation), get_args(_without_metadata(annotation))
    if get_origin(bare) is Literal:
        choices = ", ".join(show(choice) for choice in arguments)
        return choices if len(arguments) == 1 else f"one of {choices}"
    if get_origin(bare) is tuple:
        items = {_without_metadata(item) for item in arguments if item is not ...}
        plurals = ((int, "integers"), (float, "numbers"), (str, "text"))
        plural = next((plural for item, plural in plurals if items == {item}), "values")
        return f"a list of {plural}" if arguments[-1] is ... else f"a list of {len(arguments)} {plural}"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return words.get(bare, "a section" if is_section(bare) or get_origin(bare) is dict else "a value")


def _without_metadata(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None`, so that the metadata of X can be seen; any other type as it is."""
    bare = _without_metadata(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        rest = [member for member in get_args(bare) if member is not type(None)]
        return _without_none(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _field_type(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    if field.discriminator is not None:
        annotation = Annotated[annotation, Field(discriminator=field.discriminator)]
    return annotation


def _discriminator(annotation: Any) -> str | None:
    """The key that tells the members of a union apart, where one is declared."""
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    names = [item.discriminator for item in metadata if isinstance(item, FieldInfo)]
    return next((name for name in names if isinstance(name, str)), None)


def _dict_values(annotation: Any) -> Any:
    """The type of a dict's values, where `annotation` is a dict (or None)."""
    for member in members_of(annotation):
        if get_origin(bare := _without_metadata(member)) is dict:
            return get_args(bare)[1]
    return None


def _list_items(annotation: Any) -> Any:
    """The type of a list's items, where `annotation` is a list of any length (or None)."""
    for member in members_of(annotation):
        if get_origin(bare := _without_metadata(member)) is tuple and get_args(bare)[-1] is ...:
            return get_args(bare)[0]
    return None


def _child(annotation: Any, step: str | int) -> Any:
    """The type at one key or index of a single type; None where it has none."""
    bare = _without_metadata(annotation)
    arguments = get_args(bare)
    if is_section(bare):
        return fields_of(bare).get(str(step))
    if get_origin(bare) is dict:
        return arguments[1]
    if get_origin(bare) is tuple and isinstance(step, int):
        return arguments[0] if arguments[-1] is ... else arguments[step] if step < len(arguments) else None
    return None


def _locate(
    details: dict[str, Any], annotation: Any, value: JsonValue, at: Path, root: Any
) -> tuple[Path, list[Problem]]:
    """Follows pydantic's location through types and values together, up to the field a reader would name."""
    steps = list(details["loc"])
    owner = annotation
    while True:
        annotation = _without_none(annotation)
        tag = _discriminator(annotation)
        members = members_of(annotation)
        if tag is not None and steps:
            chosen = steps.pop(0)
            members = tuple(m for m in members if chosen in get_args(fields_of(m)[tag]))
        elif tag is not None:
            return _tag_problem(details, members, tag, value, at)
        elif len(members) > 1 and steps:  # what remains is the name of a member; without it, the union's own check
            return at, _union_problems(members, value, at, root)
        annotation = members[0]
        if not steps:
            break
        owner, step = annotation, steps.pop(0)
        annotation = _child(owner, step)
        if details["type"] == "missing" and isinstance(step, int) and not steps:  # a tuple that is too short
            annotation = owner
            break
        at = (*at, step)
        value = _item(value, step)
        if annotation is None or (details["type"] == "missing" and not steps):
            break
    kind = details["type"]
    if kind == "extra_forbidden":
        return at, [Problem(at, kind, _unknown_key(owner, str(at[-1]), root))]
    if kind == "missing" and annotation is not owner:
        sections = all(is_section(member) for member in members_of(annotation))
        return at, [Problem(at, kind, f"required {'section' if sections else 'key'} is missing")]
    kind = "too_short" if kind == "missing" else kind
    return at, [Problem(at, kind, _message(kind, details, annotation, value), value)]


def _item(value: JsonValue, step: str | int) -> JsonValue:
    if isinstance(value, dict):
        return value.get(str(step))
    return value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None


def _tag_problem(
    details: dict[str, Any], members: tuple[Any, ...], tag: str, value: JsonValue, at: Path
) -> tuple[Path, list[Problem]]:
    """The discriminating key is missing or names no member."""
    if not isinstance(value, dict):
        return at, [Problem(at, "model_type", _not_a_section(value), value)]
    choices = sorted(choice for member in members for choice in get_args(fields_of(member)[tag]))
    allowed = f"one of {', '.join(map(repr, choices))}"
    path = (*at, tag)
    if tag not in value:
        return path, [Problem(path, "missing", f"required key is missing: {allowed}")]
    message = hinted(f"must be {allowed}", str(value[tag]), choices)
    return path, [Problem(path, "literal_error", message, value[tag])]


def _union_problems(members: tuple[Any, ...], value: JsonValue, at: Path, root: Any) -> list[Problem]:
    """One explanation for a union: of the member that the value's shape calls for, or of all."""
    union = reduce(or_, members)
    sections = [member for member in members if is_section(member)]
    if isinstance(value, dict) and len(sections) > 1 and (tag := _shared_tag(sections)):
        return problems_in(Annotated[reduce(or_, sections), Field(discriminator=tag)], value, at, root)
    meant = [member for member in members if _has_shape(value, member)]
    if isinstance(value, dict) and len(meant) > 1:
        shared = {member: len(fields_of(member).keys() & value.keys()) for member in meant}
        most = max(shared.values())
        if 0 < most < len(value) and value.keys() <= fields_of(union).keys():
            return [Problem(at, "union", f"must have only one of the keys {_quoted(value)}", value)]
        meant = [member for member in meant if shared[member] == most > 0]
    for member in meant:
        if get_origin(member) is Literal:
            continue  # as one of all the alternatives, below
        others = describe(reduce(or_, (other for other in members if other is not member)))
        return [
            replace(problem, message=f"{problem.message}, or be {others}") if problem.path == at else problem
            for problem in problems_in(member, value, at, root)
        ]
    choices = [str(choice) for member in meant for choice in get_args(member)]
    written = next(iter(value), "") if isinstance(value, dict) else str(value)
    remedy = next(filter(None, (_remedy(member, value) for member in members)), "")
    message = hinted(f"must be {describe(union)}{remedy}", written, [*choices, *fields_of(union)])
    return [Problem(at, "union", message, value)]


def _shared_tag(sections: list[Any]) -> str | None:
    """The key that tells sections apart which stand in a union beside other types: a word of its own in each."""
    words = [{key for key, of_key in fields_of(each).items() if get_origin(of_key) is Literal} for each in sections]
    return next(iter(sorted(set.intersection(*words))), None)


def _has_shape(value: JsonValue, annotation: Any) -> bool:
    """Whether a value is written as a type's values are (a section, a list, text, a number), right or wrong."""
    bare = _without_metadata(annotation)
    if get_origin(bare) is Literal:
        return any(type(value) is type(choice) for choice in get_args(bare))
    if isinstance(value, dict):
        return is_section(bare) or get_origin(bare) is dict
    if isinstance(value, list):
        return get_origin(bare) is tuple
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bare in (int, float)
    return value is not None and bare is type(value)


def _unknown_key(owner: Any, name: str, root: Any) -> str:
    valid = fields_of(owner)
    homes = " or ".join(_homes(root, name))
    text = f"unknown key. It belongs to {homes}" if homes else hinted("unknown key", name, valid)
    return f"{text}{'' if text.endswith('?') else '.'} Valid keys: {', '.join(valid)}"


def _homes(annotation: Any, name: str, prefix: str = "") -> Iterator[str]:
    """Where in the file a key of this name would be valid."""
    annotation = _without_none(annotation)
    tag = _discriminator(annotation)
    homes = [fields_of(member) for member in members_of(annotation) if name in fields_of(member)]
    if homes:
        kinds = [kind for fields in homes for kind in get_args(fields[tag])] if tag is not None else []
        yield repr(prefix + name) + (f" of {tag} {_quoted(kinds)}" if kinds else "")
    for member in members_of(annotation):
        for key, inner in fields_of(member).items():
            yield from _homes(inner, name, f"{prefix}{key}.")


def _message(kind: str, details: Mapping[str, Any], annotation: Any, value: JsonValue) -> str:
    context = details.get("ctx", {})
    bounds = {
        "greater_than": ("greater than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
        "multiple_of": ("a multiple of", "multiple_of"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"must be {words} {_number(context[key])}"
    if kind == "literal_error":
        return hinted(f"must be {describe(annotation)}", str(value), map(str, get_args(annotation)))
    if kind in ("model_type", "dict_type"):
        return _not_a_section(value)
    if kind in ("too_short", "too_long"):
        return _wrong_length(context, annotation)
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "value_error":
        return str(context["error"])
    if kind.endswith("_type") or kind == "int_from_float":
        return f"must be {describe(annotation)}{_remedy(annotation, value)}"
    return str(details["msg"])


def _wrong_length(context: Mapping[str, Any], annotation: Any) -> str:
    bare = _without_metadata(annotation)
    if get_origin(bare) is tuple and get_args(bare)[-1] is not ...:
        return f"must be {describe(annotation)}"
    limit = context.get("min_length", context.get("max_length"))
    item = "key" if get_origin(bare) is dict else "value"
    return f"must have at {'least' if 'min_length' in context else 'most'} {limit} {item}{'' if limit == 1 else 's'}"


def _remedy(annotation: Any, value: JsonValue) -> str:
    """What to write instead, where the intention is plain."""
    bare = _without_metadata(annotation)
    if bare is str and isinstance(value, int | float):
        return f": write {json.dumps(show(value))}"
    if bare in (int, float) and isinstance(value, str):
        text = value.strip().replace("_", "")
        try:
            number = bare(text)
        except ValueError:
            return ""
        return f": write {_number(number)} without quotes"
    if bare is bool and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "true", "false"):
        return f": write {show(value.lower() in ('yes', 'on', 'true'))}"
    if bare is int and isinstance(value, float) and value.is_integer():
        return f": write {int(value)}"
    if get_origin(bare) is tuple and value is not None and not isinstance(value, dict):
        return f": write [{value if isinstance(value, str) else show(value)}]"
    return ""


def _not_a_section(value: JsonValue) -> str:
    if value is None:
        return "must be a section, not empty: indent its keys below it (a section left out has its defaults)"
    if isinstance(value, list):
        return "must be a section of `key: value` lines, not a list"
    if isinstance(value, str) and ":" in value:
        return "must be a section of `key: value` lines: put a space after the ':'"
    return "must be a section of `key: value` lines"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
