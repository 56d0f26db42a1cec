"""The base of all specs: strictness, ranges of numbers, unions, and one-line errors.

Each spec is a frozen pydantic model. A TOML variant file, a ``--set`` option and Python code all
build the same objects, so each of them is checked in the same way: unknown keys, wrong types,
values out of range, NaN and infinity are errors. Every number has bounds and every text is one
printable line: values beyond the bounds would exceed float32, a machine's memory or a lifetime. The
bounds on the distributions' parameters are the ranges in which they are tested: concentrations from
0.01 to a million, rates from a millionth to a million, and a sharpness up to 1,000 wherever its
schedule takes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args

from ngvae_pyro.errors import UserError, nearest, one_line
from ngvae_pyro.extras import needed

with needed("train"):
    from pydantic import (
        AfterValidator,
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Field,
        GetCoreSchemaHandler,
        TypeAdapter,
        ValidationError,
        model_validator,
    )
    from pydantic_core import ErrorDetails, core_schema


class Spec(BaseModel):
    """Base of all specs: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = type(self).__name__
            raise UserError(f"{name}: {_explain(type(self), error)}") from None

    # Pydantic's own __init__ has this mark: nested specs are then validated without calling this
    # one, so that an error keeps the full path of its key.
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Self:
        # Count the tag as given, so that a dump without the defaults is read back as the same
        # member of its union: `FactorSpec(width=16)` is more than its width.
        known = {"kind", "family"} & type(self).model_fields.keys()
        self.__pydantic_fields_set__.update(known)
        return self


def to_tuple(value: Any) -> Any:
    """Turn a list into a tuple, because TOML has arrays where Python has tuples."""
    return tuple(value) if isinstance(value, list) else value


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Update a nested mapping: tables are merged key by key, anything else is replaced."""
    merged = dict(values)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


# The values that the key of each union takes, for error messages.
_UNIONS: dict[str, list[str]] = {}


@dataclass(frozen=True)
class ChosenBy:
    """Marks a union of specs whose member is chosen by ``key``; the first one is the default."""

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        key = self.key
        members: tuple[type[Spec], ...] = get_args(source)
        by_value = {member.model_fields[key].default: member.__name__ for member in members}
        first = members[0]

        def choose(value: Any) -> str | None:
            if isinstance(value, Spec):
                return type(value).__name__
            if not isinstance(value, Mapping):
                return first.__name__
            given = value.get(key, first.model_fields[key].default)
            # An unknown value is passed on, for pydantic to report.
            return by_value.get(given, str(given)) if isinstance(given, str) else shown(given)

        union = " | ".join(by_value.values())
        _UNIONS[union] = list(by_value)
        return core_schema.tagged_union_schema(
            {member.__name__: handler.generate_schema(member) for member in members},
            choose,
            custom_error_type="unknown_member",
            custom_error_message="not a member of the union",
            custom_error_context={"key": key, "union": union},
        )


def members_of(union: Any) -> tuple[type["Spec"], ...]:
    """The specs in a union, in the order in which they are written."""
    members: tuple[type[Spec], ...] = get_args(get_args(union)[0])
    return members


def printable_line(text: str) -> str:
    """Return a text unchanged if it is one printable line.

    Raises:
        ValueError: If it is not; pydantic turns this into a validation error.
    """
    if not text.isprintable():
        raise ValueError(f"expected one printable line, got {text!r}")
    return text


# The ranges in which the distributions are tested to hold their accuracy.
Concentration = Annotated[float, Field(ge=1e-2, le=1e6)]
Rate = Annotated[float, Field(ge=1e-6, le=1e6)]
MAX_SHARPNESS = 1e3
Sharpness = Annotated[float, Field(gt=0.0, le=MAX_SHARPNESS)]

# The first two are pairs (informative, uninformative); a GammaPair is the (concentration, rate) of
# one Gamma distribution.
Concentrations = Annotated[tuple[Concentration, Concentration], BeforeValidator(to_tuple)]
Rates = Annotated[tuple[Rate, Rate], BeforeValidator(to_tuple)]
GammaPair = Annotated[tuple[Concentration, Rate], BeforeValidator(to_tuple)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

# Adam's steps grow with it; training diverges, with a clear message, far below this bound.
LearningRate = Annotated[float, Field(gt=0.0, le=1e30)]

# Weights of loss terms in nats, which must still add up in float32.
Weight = Annotated[float, Field(ge=0.0, le=1e9)]
PositiveWeight = Annotated[float, Field(gt=0.0, le=1e9)]
Steps = Annotated[int, Field(gt=0, le=10**9)]

# Sizes of networks and batches. :mod:`ngvae_pyro.machine` checks whether they fit into memory.
Width = Annotated[int, Field(gt=0, le=100_000)]
Depth = Annotated[int, Field(gt=0, le=1_000)]
Channels = Annotated[int, Field(gt=0, le=10_000)]
Rank = Annotated[int, Field(gt=0, le=10_000)]
Blocks = Annotated[int, Field(gt=0, le=100)]
Copies = Annotated[int, Field(gt=0, le=10_000)]
Side = Annotated[int, Field(gt=0, le=65_536)]
Colours = Annotated[int, Field(gt=0, le=1_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# Names and paths, and the labels shown in tables and figures.
Text = Annotated[str, Field(max_length=4096), AfterValidator(printable_line)]
Label = Annotated[str, Field(max_length=100), AfterValidator(printable_line)]

# Errors --------------------------------------------------------------------------------------
_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "an array",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "an array of at least {min_length}",
    "too_long": "an array of at most {max_length}",
    "string_too_long": "at most {max_length} characters",
    "string_unicode": "text that UTF-8 can write",
    # fit.device is the only key with a pattern.
    "string_pattern_mismatch": "auto, cpu, cuda or cuda:N",
}


def parse(spec: Any, values: Mapping[str, Any], source: str) -> Any:
    """Build a spec from plain values; the first mistake becomes one :class:`UserError` line.

    Args:
        spec: Spec class, or a type adapter of a union of them.
        values: Nested mapping as read from TOML.
        source: Name of the file or option, for the message.

    Returns:
        The validated spec.

    Raises:
        UserError: ``source: key: expected ..., got ...`` with the nearest known name.
    """
    validate = spec.validate_python if isinstance(spec, TypeAdapter) else spec.model_validate
    try:
        return validate(dict(values))
    except ValidationError as error:
        root = None if isinstance(spec, TypeAdapter) else spec
        raise UserError(f"{source}: {_explain(root, error)}") from None


def shown(value: Any) -> str:
    """A value's ``repr`` on one line, for error messages."""
    try:
        return one_line(repr(value))
    except ValueError:
        # Python refuses to write out a whole number of thousands of digits.
        return "a number of thousands of digits"


def _subclasses(spec: type[Spec]) -> Iterator[type[Spec]]:
    for member in spec.__subclasses__():
        yield member
        yield from _subclasses(member)


def _explain(root: type[Spec] | None, error: ValidationError) -> str:
    """Describe the first of a validation's errors in one line."""
    errors = error.errors()
    first, location = errors[0], errors[0]["loc"]
    kind, got, context = first["type"], first["input"], first.get("ctx", {})
    # Of a number or a word there is an error for each, at the key and what pydantic calls its kind.
    union = [other for other in errors if other["loc"][:-1] == location[:-1] != ()]
    words = [other for other in union if str(other["loc"][-1]).startswith("literal[")]
    if words:
        location = location[:-1]
    # A location consists of keys, array positions and union tags, which are class names.
    members = {member.__name__: member for member in _subclasses(Spec)}
    keys = [str(part) for part in location if part not in members]
    key = ".".join(keys) or "the file"
    if kind == "value_error":
        return f"{key}: {context['error']}" if keys else str(context["error"])
    if kind == "extra_forbidden":
        known = list(_table(root, location[:-1], members).model_fields)
        return f"unknown key '{key}'{nearest(keys[-1], known)} (known: {', '.join(known)})"
    if kind == "missing":
        return f"{key}: expected a value, got none"
    if kind == "unknown_member":
        options, got = _UNIONS[context["union"]], got[context["key"]]
        key = ".".join([*keys, context["key"]])
        expected, hint = f"one of {', '.join(map(repr, options))}", nearest(str(got), options)
    elif words:
        numbers = [_expected(other) for other in union if other not in words]
        expected = " or ".join([*numbers, *(word["ctx"]["expected"] for word in words)])
        hint = _nearest_word(got, words[0])
    else:
        expected = _expected(first)
        hint = _nearest_word(got, first) if kind == "literal_error" else ""
    return f"{key}: expected {expected}, got {shown(got)}{hint}"


def _expected(error: ErrorDetails) -> str:
    return _EXPECTED.get(error["type"], error["msg"]).format(**error.get("ctx", {}))


def _nearest_word(got: Any, error: ErrorDetails) -> str:
    """A hint at the word of a literal that is nearest to what was given."""
    if not isinstance(got, str):
        return ""
    words = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
    return nearest(got, words)


def _table(root: type[Spec] | None, location: tuple[Any, ...], members: Mapping[str, Any]) -> Any:
    """The spec of the table that a location points into."""
    table = root
    for part in location:
        if part in members:
            table = members[part]
        elif table is not None and part in table.model_fields:
            annotation = table.model_fields[part].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if a in members.values()]
            table = inner[0] if inner else table
    return table
