"""Finds, reads and lists the variants declared in ``models/*.toml`` and ``guides/*.toml``."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ngvae_pyro.errors import UserError, expect, nearest
from ngvae_pyro.files import read_text

if TYPE_CHECKING:
    from ngvae_pyro.specs import RunSpec, Spec

# The specs are imported inside the functions that check values: importing them with pydantic takes
# longer than listing the variants.
Kind = Literal["models", "guides"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def folder(kind: Kind) -> Path:
    """The folder of the declared variants: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """The names of the declared variants, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.toml"))


def describe(kind: Kind, name: str) -> str:
    """The first sentence of a declared variant's opening comment."""
    return first_sentence((folder(kind) / f"{name}.toml").read_text(encoding="utf-8"))


def first_sentence(text: str) -> str:
    r"""The first sentence of a TOML file's opening comment, or an empty string.

    >>> first_sentence("# Ours. More of it.\nlatent_size = 3")
    'Ours.'
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).split(". ")[0].rstrip(".") + "." if lines else ""


def kinds_of(name_or_path: str | Path) -> list[Kind]:
    """Whether a variant declares a model, a guide, or both, if both have this name.

    A file is of the kind that has most of its keys; an empty file could be either.

    Raises:
        UserError: If there is no such variant or file, or the file is not TOML.
    """
    text = str(name_or_path)
    if kinds := [kind for kind in KINDS if text in names(kind)]:
        return kinds
    from ngvae_pyro.specs import GUIDE_SPECS, ModelSpec

    if not _is_path(text):
        known = sorted({*names("models"), *names("guides")})
        raise UserError(
            f"unknown variant '{text}'{nearest(text, known)} "
            f"(known: {', '.join(known)}, or a path to a .toml file or to a folder of them)"
        )
    _, values = read("models", text)
    known_keys: dict[Kind, set[str]] = {
        "models": set(ModelSpec.model_fields),
        "guides": {key for spec in GUIDE_SPECS for key in spec.model_fields},
    }
    found = {kind: len(known_keys[kind] & values.keys()) for kind in KINDS}
    return [kind for kind in KINDS if found[kind] == max(found.values())]


def keys_of(spec: "Spec") -> Iterator[tuple[str, Any, Any]]:
    """The keys of a spec, dotted, each with its value and default, in order of declaration."""

    def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from flat(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    defaults = dict(flat(type(spec)().model_dump(mode="json")))
    for key, value in flat(spec.model_dump(mode="json")):
        yield key, value, defaults.get(key)


def _is_path(text: str) -> bool:
    return text.endswith(".toml") or "/" in text or "\\" in text


def read(kind: Kind, name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """Read a declared variant, or a TOML file given by its path.

    A name without ``.toml`` and without a path separator is a declared variant.

    Returns:
        The source's name, for messages, and its plain values.

    Raises:
        UserError: If there is no such variant or file, or the file is not TOML.
    """
    text = str(name_or_path)
    if not _is_path(text):
        known = names(kind)
        if text not in known:
            hint = nearest(text, known)
            for other in KINDS:
                if text in names(other):
                    hint = f", which is a {other[:-1]}"
            raise UserError(
                f"unknown {kind[:-1]} '{text}'{hint} "
                f"(known: {', '.join(known)}, or a path to a .toml file)"
            )
        path, source = folder(kind) / f"{text}.toml", f"{kind}/{text}.toml"
    else:
        path, source = Path(text), text
    try:
        return source, tomllib.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{source}: cannot read the file: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Also raised for a NUL in the path, for overlong numbers and for deeply nested tables.
        raise UserError(f"{source}: not valid TOML: {error}") from None


def check_variant(what: str, variant: Any, kind: Kind) -> None:
    """Refuse what is not a name, a path or the spec of a model or of a guide.

    Args:
        what: The name of the argument.
        variant: What was passed.
        kind: Which of the two it has to be.

    Raises:
        UserError: With what to pass.
    """
    from ngvae_pyro.specs import GUIDE_SPECS, ModelSpec

    specs = (ModelSpec,) if kind == "models" else GUIDE_SPECS
    expected = f"a name, a path to a .toml file or the spec of a {kind.removesuffix('s')}"
    expect(what, variant, (str, Path, *specs), expected)


def spec_of(kind: Kind, variant: "str | Path | Spec", changes: Mapping[str, Any]) -> Any:
    """The spec of a variant, given by name, path or as a spec, with changes applied.

    Args:
        kind: Whether it is a model or a guide.
        variant: A name, a path to a ``.toml`` file, or a spec.
        changes: Keys to change, as nested tables.

    Raises:
        UserError: If the variant cannot be read, or it or a change is out of range.
    """
    from ngvae_pyro.specs import DECLARED, Spec, merge, parse

    article = "a name, a path to a .toml file or the spec of a"
    expect("variant", variant, (str, Path, Spec), f"{article} {kind.removesuffix('s')}")
    if isinstance(variant, Spec):
        if not changes:
            return variant
        source, values = type(variant).__name__, variant.model_dump(exclude_unset=True)
    else:
        source, values = read(kind, variant)
    # Parse it without the changes first, so that no message blames a change for a mistake in the
    # file.
    spec = parse(DECLARED[kind], values, source)
    if not changes:
        return spec
    return parse(DECLARED[kind], merge(values, changes), f"changes to {source}")


def run_spec(model: str, guide: str, changes: Mapping[str, Any], source: str) -> "RunSpec":
    """The spec of a run: two variants with the command line's changes applied.

    Args:
        model: Name or path of the model.
        guide: Name or path of the guide.
        changes: Tables ``model``, ``guide``, ``fit`` and ``data`` with the keys to change.
        source: Where the changes come from, for messages.
    """
    from ngvae_pyro.specs import RunSpec, parse

    parts, changes = {}, dict(changes)
    named: tuple[tuple[Kind, str], ...] = (("models", model), ("guides", guide))
    for kind, name in named:
        part = kind.removesuffix("s")
        spec = spec_of(kind, name, changes.pop(part, {}))
        parts[part] = spec.model_dump(exclude_unset=True)
    values = {"model_name": model, "guide_name": guide, **parts, **changes}
    return parse(RunSpec, values, source)
