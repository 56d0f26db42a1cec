"""The site: `make docs` builds it in docs/_build/html, without a network.

The pages are the Markdown of this folder, which reads in a plain viewer of the repository too.
Warnings are errors. Pages with code cells are executed; `-D nb_execution_mode=off` leaves that out.
"""

import importlib
import inspect
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import ngvae_pyro

HERE = Path(__file__).parent

project = "ngvae_pyro"
author = "The ngvae_pyro developers"
copyright = author
release = version = ngvae_pyro.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Markdown and its executed cells. Nothing is kept between builds: a page shows what today's package
# prints.
myst_enable_extensions = ["dollarmath", "deflist", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
# tqdm, which Pyro imports, misses a widget that the pages have no use for.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
# The widgets' scripts would come from other hosts.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

# The reference.
add_module_names = False
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
nitpicky = True
# Annotations of optional imports, which are there for type checkers alone.
nitpick_ignore = [
    ("py:class", "pd.DataFrame"),
    ("py:class", "InferenceData"),
    ("py:class", "DataTree"),
]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "ngvae_pyro"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7db8f0", "color-brand-content": "#7db8f0"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# What stands in the package's own page, by identity.
TOP = {
    id(getattr(ngvae_pyro, name)): name
    for name in ngvae_pyro.__all__
    if not isinstance(getattr(ngvae_pyro, name), (ModuleType, str))
}


# The reference ---------------------------------------------------------------------------------


def public_names(module: ModuleType) -> list[str]:
    """The names that a module gives its users, in the order of its source.

    They are those of its ``__all__``, or else the functions and classes without an underscore that
    it, or a module inside it, defines. What stands in the package's page is left out.
    """
    if module is ngvae_pyro:
        return list(TOP.values())
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and f"{value.__module__}.".startswith(f"{module.__name__}.")
        ]
    found = ((name, getattr(module, name)) for name in names)
    # Constants say what they are in the source, and have no page.
    return [name for name, value in found if callable(value) and id(value) not in TOP]


class PublicNames(SphinxDirective):
    """The public names of a module: a table of them, and then each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = self.arguments[0]
        module = importlib.import_module(path)
        names = public_names(module)
        lines = [f".. automodule:: {path}", "   :no-members:", ""]
        lines += [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {name}" for name in names] + [""]
        for name in names:
            kind = "class" if inspect.isclass(getattr(module, name)) else "function"
            lines += [f".. auto{kind}:: {path}.{name}"]
            lines += ["   :members:", ""] if kind == "class" else [""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def keep_sentence(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Napoleon takes what stands before the colon of a property's first sentence for its type."""
    if what == "property":
        lines[0] = f": {lines[0]}"


def shorten_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """The keys of a spec with their defaults, without pydantic's annotations."""
    fields = getattr(value, "model_fields", None) if what == "class" else None
    if fields is None:
        # A dataclass writes its made defaults so, which is no Python.
        return (signature.replace("<factory>", "..."), returns) if signature else None
    shown = []
    for key, field in fields.items():
        default = repr(field.get_default(call_default_factory=True))
        if field.is_required():
            shown.append(key)
        else:
            shown.append(f"{key}={default if len(default) < 30 else '...'}")
    return f"({', '.join(['*', *shown])})", ""


# The documented name of each documented object; filled when the first reference asks.
OBJECTS: dict[int, str] = {}


def named(path: str) -> Any:
    """What a dotted name leads to; LookupError if nothing."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = {**getattr(found, "__annotations__", {}), **vars(found)}
            if not hasattr(found, part) and part not in fields:
                raise LookupError(path)
            found = getattr(found, part, None)
        return found
    raise LookupError(path)


def resolve(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Node) -> nodes.Node | None:
    """References by another name than that of the reference, and to what stands elsewhere.

    A docstring names things as its own module does, and many have a public name besides. What has
    no page here, such as a class of torch, is text; a name of nothing at all stays a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    scopes = [node.get("py:module"), f"{node.get('py:module')}.{node.get('py:class')}"]
    paths = [target, *(f"{scope}.{target}" for scope in scopes if scope), f"builtins.{target}"]
    paths += [f"{name}.{target}" for name in sorted(sys.modules) if name.startswith("ngvae_pyro")]
    for path in paths:
        try:
            value = named(path)
        except LookupError:
            continue
        objects = env.domains["py"].objects
        if not OBJECTS:
            for name in objects:
                # What a docstring says of an instance's attributes is no attribute of its class.
                with suppress(LookupError):
                    OBJECTS[id(named(name))] = name
        if id(value) not in OBJECTS:
            return content
        entry = objects[OBJECTS[id(value)]]
        page = app.builder.get_relative_uri(node["refdoc"], entry.docname)
        return nodes.reference("", "", content, internal=True, refuri=f"{page}#{entry.node_id}")
    return None


# The pages -------------------------------------------------------------------------------------


# Where files of the repository stand on the site; all others are offered as they are.
PAGES = {"../models/README.md": "models.md", "../guides/README.md": "guides.md"}


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files of the repository that have a page."""
    up = "../" * page.count("/")

    def link(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        module = re.fullmatch(r"\.\./ngvae_pyro/(\w+)(?:\.py|/)", path)
        if module and (HERE / "api" / f"{module[1]}.rst").exists():
            return f"]({up}api/{module[1]}.rst{anchor})"
        return f"]({up}{PAGES[path]}{anchor})" if path in PAGES else match[0]

    source[0] = re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", link, source[0])


def write_math(translator: Any, node: nodes.Element) -> None:
    """MathML, which browsers draw themselves: no script and no font comes from anywhere."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def check_pages(app: Sphinx, error: Exception | None) -> None:
    """No page loads anything from another host."""
    if error or app.builder.format != "html":
        return
    source, style = r'<(?:script|img|iframe)[^>]+src="', r'<link[^>]+href="'
    loads = re.compile(rf"(?:{source}|{style})(?:https?:)?//")
    for path in Path(app.outdir).rglob("*.html"):
        if found := loads.search(path.read_text(encoding="utf-8")):
            raise ExtensionError(f"{path.name} loads from elsewhere: {found[0]}")


def setup(app: Sphinx) -> None:
    app.add_directive("public-names", PublicNames)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("missing-reference", resolve)
    app.connect("source-read", relink)
    app.connect("build-finished", check_pages)
