"""WHAT columns are: numbers, categories, dates, images, sequences, text: by schema and sample; `data.columns` wins.

Shapes: C channels, H height, W width, T time steps.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raynn.errors import DataError, did_you_mean
from raynn.sources import ColumnSplit, DataSettings

ColumnKind = Literal["numeric", "categorical", "date", "image", "sequence", "text", "ignore"]
Family = Literal["number", "bool", "text", "date", "image", "sequence", "null", "other"]

PARSED_FRACTION = 0.99  # of the sampled values, for text to be numbers or dates
DISTINCT_FRACTION = 0.5  # of the sampled values, above which text of more than TEXT_WORDS words is free text
TEXT_WORDS = 5
IDENTIFIER_ROWS = 1000  # sampled, above which text that never repeats is an identifier
IMAGES_LOOKED_AT = 100  # to see whether any has color
INDEX_NAMES = ("", "__index_level_0__")  # how pandas writes a table's index into CSV and Parquet

# What each kind can be made from. A column of nulls can be any kind.
FAMILIES: dict[ColumnKind, tuple[Family, ...]] = {
    "numeric": ("number", "bool", "text", "null"),
    "categorical": ("number", "bool", "text", "date", "null"),
    "date": ("date", "text", "null"),
    "image": ("image", "null"),
    "sequence": ("sequence", "null"),
    "text": ("text", "null"),
    "ignore": ("number", "bool", "text", "date", "image", "sequence", "null", "other"),
}
_KINDS: dict[Family, ColumnKind] = {
    "number": "numeric",
    "bool": "categorical",
    "date": "date",
    "image": "image",
    "sequence": "sequence",
}
_DAY = r"\d{4}-\d{2}-\d{2}"
_TIME = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?"
_ZONE = r"(Z|[+-]\d{2}:?\d{2})"


@dataclass(frozen=True)
class ColumnSpec:
    """What a column holds. `shape` is (C, H, W) of an image, (T, C) of a sequence (T is 0 where lengths differ), else
    empty.
    """

    name: str
    kind: ColumnKind
    shape: tuple[int, ...] = ()
    reason: str = ""


def infer_columns(
    schema: pa.Schema, sample: pa.Table, settings: DataSettings, kinds: tuple[ColumnKind, ...] | None = None
) -> tuple[tuple[ColumnSpec, ...], tuple[ColumnSpec, ...]]:
    """The features, in the order of `data.features` or of the schema, and the targets.

    Features of kind `ignore` are among them, so that the reason can be shown; group, time, series and split columns
    are not. With `kinds`, columns of other kinds that `data.features` does not name are ignored.

    Raises:
        DataError: names that are not columns, columns that cannot be what they should.
    """
    _require_columns(schema.names, settings)
    if not sample.num_rows:
        raise DataError("the data hold no rows to infer columns from; name a source that holds some")
    inputs = ("data.features", "data.columns", "data.known")
    roles = {name: field for field, name in _named(settings) if field not in inputs}
    for name in settings.features or ():
        if name in roles:
            raise DataError(f"data.features names {name!r}, which is {roles[name]} and so no input; take it out")
    names = settings.features or [name for name in schema.names if name not in roles]
    features = tuple(_feature(name, sample[name], settings) for name in names)
    if kinds is not None and not settings.features:
        features = tuple(_only(kinds, spec) for spec in features)
    return features, tuple(_target(name, sample[name], settings) for name in settings.targets)


def require_features(features: Iterable[ColumnSpec], settings: DataSettings) -> None:
    """DataError unless a column is left to learn from."""
    features = tuple(features)
    if all(spec.kind == "ignore" for spec in features):
        reasons = "; ".join(f"{spec.name}: {spec.reason}" for spec in features) or "there is no other column"
        beside = f" beside data.target = {settings.target!r}" if settings.target else ""
        raise DataError(f"no feature is left{beside} ({reasons}); add a column")


def _only(kinds: tuple[ColumnKind, ...], spec: ColumnSpec) -> ColumnSpec:
    if spec.kind in (*kinds, "ignore"):
        return spec
    return ColumnSpec(spec.name, "ignore", (), f"{spec.kind}, and the task reads {' and '.join(kinds)} columns alone")


def parse_numbers(text: Any) -> Any:
    """Float64 values of a string array; null where it is null, empty or no number; NaN and infinities as written."""
    trimmed = pc.utf8_trim_whitespace(text)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        number = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:nan|inf|infinity))$"
        return pc.cast(_where(pc.match_substring_regex(trimmed, number), trimmed), pa.float64())


def parse_dates(text: Any) -> Any:
    """Timestamps [us, UTC where a zone is given] of ISO 8601 days and times; null where it is none."""
    trimmed = pc.utf8_trim_whitespace(text)
    trimmed = pc.replace_substring_regex(trimmed, r"(\.\d{6})\d+", r"\1")
    day = pc.utf8_slice_codeunits(trimmed, 0, 10)
    # strptime lets February 30 roll over into March
    rolled = pc.strptime(_where(pc.match_substring_regex(day, f"^{_DAY}$"), day), "%Y-%m-%d", "us", error_is_null=True)
    trimmed = _where(pc.equal(pc.strftime(rolled, "%Y-%m-%d"), day), trimmed)
    plain = _where(pc.match_substring_regex(trimmed, f"^{_DAY}([ T]{_TIME})?$"), trimmed)
    zoned = _where(pc.match_substring_regex(trimmed, f"^{_DAY}[ T]{_TIME}{_ZONE}$"), trimmed)
    utc = pc.cast(pc.cast(zoned, pa.timestamp("us", "UTC")), pa.timestamp("us"))
    return pc.coalesce(pc.cast(plain, pa.timestamp("us")), utc)


def image_bytes(column: Any) -> Any:
    """The encoded images of a binary column, or of one of structs {bytes, path}."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def plain_text(column: Any) -> Any:
    """A text column as strings, dictionaries decoded, with empty ones as null."""
    text = pc.cast(column, pa.string())
    return _where(pc.not_equal(text, ""), text)


def family_of(kind: pa.DataType) -> Family:
    """What an Arrow type holds, coarsely."""
    t = pa.types
    if t.is_dictionary(kind):
        return family_of(kind.value_type)
    if t.is_struct(kind):
        return "image" if "bytes" in [field.name for field in kind] else "other"
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return "sequence" if family_of(kind.value_type) in ("number", "sequence") else "other"
    tests: dict[Family, tuple[Any, ...]] = {
        "number": (t.is_integer, t.is_floating, t.is_decimal),
        "bool": (t.is_boolean,),
        "text": (t.is_string, t.is_large_string, t.is_string_view),
        "date": (t.is_date, t.is_timestamp),
        "image": (t.is_binary, t.is_large_binary, t.is_fixed_size_binary),
        "null": (t.is_null,),
    }
    return next((family for family, is_of in tests.items() if any(test(kind) for test in is_of)), "other")


def _feature(name: str, column: pa.ChunkedArray, settings: DataSettings) -> ColumnSpec:
    declared = settings.columns.get(name)
    kind, reason = (declared, "declared in data.columns") if declared else _inferred(name, column)
    if kind == "ignore" and family_of(column.type) == "other" and name in (settings.features or ()):
        raise DataError(f"data.features names {name!r}: {reason}; take it out, or convert the column")
    return _spec(name, kind, reason, column, settings)


def _target(name: str, column: pa.ChunkedArray, settings: DataSettings) -> ColumnSpec:
    if column.null_count == len(column):
        raise DataError(f"data.target = {name!r} has no value in the first {len(column)} rows; choose another column")
    declared = settings.columns.get(name)
    kind, reason = (declared, "declared in data.columns") if declared else _inferred(name, column)
    if not declared and family_of(column.type) == "text" and kind != "numeric":
        kind, reason = "categorical", "text"  # however long, and however seldom repeated
    if kind not in ("numeric", "categorical"):
        raise DataError(
            f"data.target = {name!r} is of kind {kind} ({reason}), and a target is numeric or categorical; "
            f"choose another column, or set `data.columns: {{{name}: categorical}}`"
        )
    return _spec(name, kind, reason, column, settings)


def _spec(name: str, kind: ColumnKind, reason: str, column: Any, settings: DataSettings) -> ColumnSpec:
    require_family(name, kind, column.type)
    shape: tuple[int, ...] = ()
    if kind in ("numeric", "date") and family_of(column.type) == "text":
        _require_parsed(name, kind, column)
    if kind == "image":
        shape, found = _image_shape(name, column, settings)
        reason = f"{reason}; {found}"
    if kind == "sequence":
        shape = _sequence_shape(name, column, settings)
    return ColumnSpec(name, kind, shape, reason)


def require_family(name: str, kind: ColumnKind, found: pa.DataType) -> None:
    """DataError unless a column of this Arrow type can be of this kind."""
    family = family_of(found)
    if family not in FAMILIES[kind]:
        fitting = [each for each, families in FAMILIES.items() if family in families]
        raise DataError(
            f"column {name!r} is to be {kind}, but holds {found}; convert it, or set `data.columns: "
            f"{{{name}: ...}}` to {' or '.join(fitting)}"
        )


def _inferred(name: str, column: pa.ChunkedArray) -> tuple[ColumnKind, str]:
    family = family_of(column.type)
    if name in INDEX_NAMES:
        return "ignore", "an index that pandas wrote"
    if column.null_count == len(column):
        return "ignore", f"no value in the first {len(column)} rows"
    if pa.types.is_dictionary(column.type):
        return "categorical", str(column.type)
    if family == "text":
        return _inferred_from_text(plain_text(column).drop_null())
    if family in _KINDS:
        return _KINDS[family], str(column.type)
    return "ignore", f"{column.type} is nothing that a network takes"


def _inferred_from_text(values: Any) -> tuple[ColumnKind, str]:
    num_values = len(values)
    if not num_values:
        return "ignore", "empty in all sampled rows"
    if _num_parsed(parse_numbers(values)) >= PARSED_FRACTION * num_values:
        return "numeric", "text that reads as numbers"
    if _num_parsed(parse_dates(values)) >= PARSED_FRACTION * num_values:
        return "date", "text that reads as ISO dates"
    num_distinct = pc.count_distinct(values).as_py()
    mean_words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(values))).as_py()
    if num_distinct > DISTINCT_FRACTION * num_values and mean_words > TEXT_WORDS:
        return "text", f"{mean_words:.0f} words on average"
    if num_distinct == num_values > IDENTIFIER_ROWS:
        return "ignore", f"an identifier: {num_values} sampled values, all different"
    return "categorical", f"text, {num_distinct} different values in {num_values} sampled"


def _num_parsed(values: Any) -> int:
    return len(values) - int(values.null_count)


def _require_parsed(name: str, kind: ColumnKind, column: Any) -> None:
    """DataError when most of a text column cannot be read as the kind it should be; a few are bad rows later."""
    text = plain_text(column)
    parsed = parse_numbers(text) if kind == "numeric" else parse_dates(text)
    failed = pc.and_(text.is_valid(), parsed.is_null())
    num_failed = pc.sum(failed).as_py() or 0
    if 2 * num_failed > _num_parsed(text):
        row = pc.index(failed, True).as_py()
        what = "a number" if kind == "numeric" else "an ISO date such as 2024-05-31"
        raise DataError(
            f"column {name!r} is to be {kind}, but {num_failed} of {_num_parsed(text)} sampled values are not "
            f"{what}: {text[row].as_py()!r} in row {row}; set `data.columns: {{{name}: categorical}}` or `ignore`"
        )


def _image_shape(name: str, column: Any, settings: DataSettings) -> tuple[tuple[int, int, int], str]:
    """(C, H, W): H and W of `data.image_size` or the first image; C of `data.image_mode` or 3 if any has color."""
    values = image_bytes(column).drop_null()[:IMAGES_LOOKED_AT].to_pylist()
    sizes: list[tuple[int, int]] = []
    color = False
    for value in values:
        try:
            with Image.open(io.BytesIO(value)) as image:
                sizes.append((image.height, image.width))
                color = color or not _is_gray(image)
        except Exception:  # Pillow raises whatever its decoders do; cleaning names each bad row
            continue
    if not sizes:
        raise DataError(
            f"column {name!r} is to be image, but none of its first {len(values)} values is one that can be decoded"
            + (f": the first begins with {values[0][:8]!r}" if values else "")
            + f"; store PNG or JPEG files as bytes, or set `data.columns: {{{name}: ignore}}`"
        )
    height, width = settings.image_size or sizes[0]
    channels = {"gray": 1, "rgb": 3, "auto": 3 if color else 1}[settings.image_mode]
    return (channels, height, width), f"{sizes[0][0]} x {sizes[0][1]} {'color' if color else 'gray'}"


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P":  # GIF and small PNG files: the palette tells
        palette = image.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode[0] in "1LIF"


def _sequence_shape(name: str, column: Any, settings: DataSettings) -> tuple[int, int]:
    """(T, C): the channels of the first sequence that has steps; T is 0 where sampled lengths differ, or others may
    come.
    """
    first: list[Any] = next((steps for row in column if (steps := row.as_py()) and steps != [[]]), [])
    steps = [step if isinstance(step, list) else [step] for step in first]
    if not steps or not steps[0]:
        raise DataError(
            f"column {name!r} is to be sequence, but none that was sampled holds a number; fill them, or drop it"
        )
    lengths = set(pc.list_value_length(column).unique().to_pylist()) - {None, 0}
    return len(steps) if len(lengths) == 1 and not settings.any_length else 0, len(steps[0])


def _where(mask: Any, values: Any) -> Any:
    return pc.if_else(mask, values, None)


def _named(settings: DataSettings) -> list[tuple[str, str]]:
    """Every column that the settings name, with the field that does."""
    named: list[tuple[str, str | None]] = [
        *(("data.target", name) for name in settings.targets),
        ("data.group", settings.group),
        ("data.time", settings.time),
        ("data.series", settings.series),
        *(("data.known", name) for name in settings.known),
        *(("data.features", name) for name in settings.features or ()),
        *(("data.columns", name) for name in settings.columns),
    ]
    for field in ("validation", "test"):
        split = getattr(settings, field)
        if isinstance(split, ColumnSplit):
            named.append((f"data.{field}.column", split.column))
    return [(field, name) for field, name in named if name is not None]


def _require_columns(names: Iterable[str], settings: DataSettings) -> None:
    names = list(names)
    for field, name in _named(settings):
        if name not in names:
            raise DataError(
                f"{field} names {name!r}, which is not a column.{did_you_mean(name, names)} "
                f"The columns: {_listed(names)}"
            )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")
