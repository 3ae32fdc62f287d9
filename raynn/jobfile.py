"""A job file as text: YAML whose every key and value knows its line and column, and overrides on top of it.

Scalars are those of YAML 1.2: `1e-4` is a number, only `true` and `false` are booleans, dates are text.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from raynn.errors import JobError
from raynn.problems import Problem

_TAG = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2 (core schema): tag, pattern, first characters.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
)
_CONSTRUCT: dict[str, Callable[[str], JsonValue]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}
# What PyYAML says, and what to do about it.
_REMEDIES = (
    (r"found character '\t'", "indent with spaces, not tabs"),
    ("mapping values are not allowed", "check the indentation, or quote text that contains ': '"),
    ("could not find expected ':'", "every line of a section is `key: value`, with a space after the ':'"),
    ("expected <block end>", "keys of one section begin in the same column"),
    ("expected alphabetic or numeric character", "quote text that begins with * or &"),
    ("cannot start any token", "quote text that begins with this character"),
    ("expected ',' or", "close the bracket"),
    ("unexpected end of stream", "close the quote"),
    ("found another document", "one job a file: remove the line `---`"),
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    """Composes nodes; scalars by YAML 1.2 instead of 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name


# libyaml's, where PyYAML has it, writes the same text in a fifth of the time: a search writes one file a trial
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc, unused-ignore]
    """Quotes text that a reader of YAML 1.1 or 1.2 would take for something else; lists on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal values are written out, never as anchors."""
        return True


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})$"), _first)


def _represent_mapping(dumper: Any, mapping: Mapping[str, Any]) -> Any:
    on_one_line = not mapping or (len(mapping) == 1 and isinstance(next(iter(mapping.values())), list))
    return dumper.represent_mapping(_TAG + "map", mapping.items(), flow_style=on_one_line)


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(_TAG + "seq", items, flow_style=True))
_Dumper.add_representer(dict, _represent_mapping)


def dump(tree: Mapping[str, Any]) -> str:
    """YAML text that `Document.read` reads back as the same tree."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


@dataclass(frozen=True)
class Place:
    """Where something was written: what to sort by, and the words that name it in a message."""

    order: tuple[float, int]
    text: str


@dataclass
class Node:
    """A value with its place, and its key's place; of a mapping or a list, the nodes inside."""

    content: Any
    place: Place | None = None
    key_place: Place | None = None

    def plain(self) -> JsonValue:
        """The value alone."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        value: JsonValue = self.content
        return value

    def child(self, step: str | int) -> Node | None:
        """The node at a key or an index, None where there is none."""
        if isinstance(self.content, dict):
            return self.content.get(step)
        inside = isinstance(self.content, list) and isinstance(step, int) and step < len(self.content)
        return self.content[step] if inside else None


@dataclass
class Document:
    """A job file, with overrides, before validation. `complaints` are what is wrong with the text itself."""

    root: Node
    complaints: list[tuple[Place | None, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a file.

        Raises:
            JobError: there is no such file, it cannot be read, or is not YAML.
        """
        return cls.parse(_text_of(path), str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> Document:
        """Parses the text of a file called `name`.

        Raises:
            JobError: the text is no YAML, empty, or not a mapping.
        """
        document = cls(Node({}))

        def place(line: int, column: int) -> Place:
            return Place((line, column), f"{name}:{line + 1}:{column + 1}")

        root = document._compose(text, place)
        if root is None:
            raise document.error()
        if not isinstance(root.content, dict):
            what = {type(None): "empty", list: "a list"}.get(type(root.content), "a single value")
            document.complaints.append(
                (
                    root.place,
                    f"the file is {what}; a job is a mapping with at least the sections `data` and `network`",
                )
            )
            raise document.error()
        document.root = root
        return document

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Document:
        """The same from plain values: numbers, text, booleans, None, paths, lists, tuples, mappings."""
        document = cls(Node({}))
        document.root = document._node_of(tree, "")
        return document

    def override(self, text: str, number: int, split: Callable[[str], tuple[str | int, ...]]) -> None:
        """Applies `dotted.key=value`, the value in YAML. `split` cuts a dotted key; missing sections are made."""
        place = Place((math.inf, number), f"override {text!r}")
        key, equals, written = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            self.complaints.append((place, "must have the form dotted.key=value"))
            return
        new = self._compose(written, lambda line, column: place)
        if new is None:
            return
        node = self.root
        *sections, last = split(key.strip())
        for section in sections:
            inside = node.child(section)
            if inside is None:
                if not isinstance(node.content, dict):
                    node.content = {}
                inside = node.content[section] = Node({}, place, place)
            node = inside
        if isinstance(node.content, list) and isinstance(last, int) and last < len(node.content):
            node.content[last] = Node(new.content, place, place)  # a place in a list has no key
            return
        if not isinstance(node.content, dict):
            node.content = {}
        node.content[last] = Node(new.content, place, place)

    def error(self, problems: Iterable[Problem] = ()) -> JobError:
        """Everything that is wrong as one error, a line each, in the order of the file."""
        found = [*self.complaints, *((self._place_of(problem), str(problem)) for problem in problems)]
        found.sort(key=lambda item: item[0].order if item[0] else (-1, 0))
        return JobError("\n".join(f"{place.text}: {text}" if place else text for place, text in found))

    def _place_of(self, problem: Problem) -> Place | None:
        """The value, or the key where that is what is wrong; the nearest section where nothing is written."""
        node = self.root
        for step in problem.path:
            child = node.child(step)
            if child is None:
                return node.key_place or node.place
            node = child
        return (node.key_place if problem.on_key else node.place) or node.place

    def _compose(self, text: str, place: Callable[[int, int], Place]) -> Node | None:
        """The nodes of a YAML text; None, with the reason among the complaints, where it is not YAML."""
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            return Node(None, place(0, 0)) if root is None else self._node(root, place, frozenset())
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n"), error.position - (before.rfind("\n") + 1)
            self.complaints.append(
                (place(line, column), f"not YAML: character {chr(error.character)!r} is not allowed")
            )
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            assert mark is not None
            self.complaints.append((place(mark.line, mark.column), _syntax(error)))
        return None

    def _node(self, node: Any, place: Callable[[int, int], Place], parents: frozenset[int]) -> Node:
        here = place(node.start_mark.line, node.start_mark.column)
        if id(node) in parents:
            raise yaml.MarkedYAMLError(problem="an alias of itself", problem_mark=node.start_mark)
        parents |= {id(node)}
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Node([self._node(item, place, parents) for item in node.value], here)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._entries(node, place, parents), here)
        if isinstance(node, yaml.ScalarNode):
            return Node(_scalar(node), here)
        raise yaml.MarkedYAMLError(
            problem=f"tag {node.tag.replace(_TAG, '!!')!r} is not allowed", problem_mark=node.start_mark
        )

    def _entries(self, node: Any, place: Callable[[int, int], Place], parents: frozenset[int]) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            mark = key.start_mark
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=mark)
            here = place(mark.line, mark.column)
            if key.value in entries:
                first = lines[key.value] + 1
                self.complaints.append(
                    (here, f"key {key.value!r} is given twice, on lines {first} and {mark.line + 1}")
                )
                continue
            # The text of the key as written: a column may be called 1 or true.
            entries[key.value] = self._node(value, place, parents)
            entries[key.value].key_place = here
            lines[key.value] = mark.line
        return entries

    def _node_of(self, value: Any, name: str) -> Node:
        if isinstance(value, Mapping):
            return Node({str(key): self._node_of(item, f"{name}.{key}") for key, item in value.items()})
        if isinstance(value, list | tuple):
            return Node([self._node_of(item, f"{name}[{i}]") for i, item in enumerate(value)])
        if value is None or isinstance(value, str | bool):
            return Node(value)
        if isinstance(value, os.PathLike):
            return Node(os.fspath(value))
        if isinstance(value, numbers.Integral):  # NumPy's integers too: a sampler draws those
            return Node(int(value))
        if isinstance(value, numbers.Real):
            return Node(float(value))
        allowed = "numbers, text, booleans, None, lists and mappings"
        self.complaints.append(
            (
                None,
                f"{name.removeprefix('.')}: a {type(value).__name__} cannot stand in a job, only {allowed}",
            )
        )
        return Node(None)


def _text_of(path: Path) -> str:
    """The text of a UTF-8 file; PyYAML passes over a byte order mark."""
    if path.is_dir():
        raise JobError(f"{path}: is a folder, not a job file.{_job_files(path, '')}")
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise JobError(f"{path}: no such file: there is no folder {str(folder)!r}") from None
        raise JobError(f"{path}: no such file.{_job_files(folder, path.name)}") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise JobError(f"{path}:{line}:{column}: not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None


def _job_files(folder: Path, name: str) -> str:
    """` Did you mean ...?` with the nearest YAML file of a folder, or the list of those it has."""
    present = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    stems = {Path(other).stem: other for other in present}
    nearest = difflib.get_close_matches(Path(name).stem, stems, n=1, cutoff=0.4)
    if nearest:
        return f" Did you mean {str(folder / stems[nearest[0]])!r}?"
    if not present:
        return f" There is no .yaml file in {str(folder)!r}."
    return f" YAML files there: {', '.join(present[:10])}{', ...' if len(present) > 10 else ''}"


def _scalar(node: Any) -> JsonValue:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind not in _CONSTRUCT:
        raise yaml.MarkedYAMLError(
            problem=f"tag {node.tag.replace(_TAG, '!!')!r} is not allowed", problem_mark=node.start_mark
        )
    try:
        return _CONSTRUCT[kind](text)
    except (KeyError, ValueError):
        raise yaml.MarkedYAMLError(problem=f"{text!r} is not of type {kind}", problem_mark=node.start_mark) from None


def _syntax(error: Any) -> str:
    """PyYAML's reason, the construct it was in, and a remedy."""
    said = str(error.problem).removeprefix("but ")
    if error.context and error.context_mark and error.context.startswith("while"):
        said = f"{said}, {error.context} that begins on line {error.context_mark.line + 1}"
    remedy = next((f" ({remedy})" for words, remedy in _REMEDIES if words in said), "")
    return f"not YAML: {said}{remedy}"
