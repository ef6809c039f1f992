"""How Sphinx builds these pages: `nox -s docs`. Nothing is fetched while building."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import napoleon
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import lamina

project = "lamina"
author = "The lamina authors"
project_copyright = f"2026, {author}"
release = version = lamina.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "lamina"
html_static_path = ["_static"]
html_css_files = ["lamina.css"]
html_show_sphinx = False
html_copy_source = False
maximum_signature_line_length = 130

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_substitutions = {
    f"version_{name}": import_module(f"lamina_{name}").__version__
    for name in ("async_backends", "interfaces", "mock", "pool", "sync_backend", "timeouts")
}
myst_substitutions["version_lamina"] = lamina.__version__
myst_heading_anchors = 3

# What stands between single backticks in a docstring is code, and a link where it names something of ours.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A name that is written as a reference has to exist. There is no inventory of other projects (it would have
# to be fetched), so names that are not ours are left alone.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!lamina).*"), (r"py:.*", r"lamina\w*\._.*"), (r"py:.*", r"lamina-.*")]
nitpick_ignore = [
    ("py:obj", "lamina.backends"),  # a group of entry points
    ("py:class", "lamina_interfaces.connecting.Outcome_co"),  # a type variable
]

PACKAGES = [
    "lamina",
    "lamina_async_backends",
    "lamina_interfaces",
    "lamina_interfaces.connecting",
    "lamina_interfaces.dialing",
    "lamina_interfaces.resolving",
    "lamina_interfaces.sockets",
    "lamina_interfaces.tls",
    "lamina_interfaces.translation",
    "lamina_mock",
    "lamina_mock.conformance",
    "lamina_pool",
    "lamina_sync_backend",
    "lamina_timeouts",
    # Last: some of their names are those of the first dialect, which others mean.
    "lamina.aio",
    "lamina.httpx",
    "lamina.httpx2",
    "lamina.sync",
]


def _home(module: Any, name: str) -> str:
    """Where a public name is documented: the flat module passes on what other packages hold."""
    value = getattr(module, name)
    owner = getattr(value, "__module__", None) or ""
    if owner.split(".")[0] in PACKAGES and "._" not in owner:
        return f"{owner}.{name}"
    # A value, or a type made of others, knows no module; it is described where a layer has it.
    layers = [layer for layer in PACKAGES[1:] if getattr(import_module(layer), name, None) is value]
    return f"{layers[0] if layers else module.__name__}.{name}"


def check_that_nothing_is_missing(_: Sphinx, env: BuildEnvironment) -> None:
    """Warn, which fails the build, about public names that no page of the reference has."""
    described = env.domains.python_domain.objects
    for package in PACKAGES:
        module = import_module(package)
        for name in module.__all__:
            if name != "__version__" and (home := _home(module, name)) not in described:
                logging.getLogger(__name__).warning("the API reference lacks %s.%s (%s)", package, name, home)


def read_private_modules() -> None:
    """Let autodoc find order and comments where they are: public objects name their package as their module."""
    for package in PACKAGES:
        module = import_module(package)
        whole = ModuleAnalyzer.for_module(package)
        whole.analyze()
        for found in iter_modules(getattr(module, "__path__", ())):
            if found.name.startswith("_") and found.name != "__main__":
                part = ModuleAnalyzer.for_module(f"{package}.{found.name}")
                part.analyze()
                whole.tagorder.update({name: len(whole.tagorder) + at for name, at in part.tagorder.items()})
                whole.attr_docs.update(part.attr_docs)


class Docstring(GoogleDocstring):
    """Reads the text of data and properties like any other: up to a colon napoleon takes it for a type."""

    def __init__(
        self, docstring: Any, config: Any = None, app: Any = None, what: str = "", *rest: Any
    ) -> None:
        super().__init__(docstring, config, app, "method" if what in {"data", "property"} else what, *rest)


def skip_fields_of_tuples(_app: Any, _what: Any, _name: str, member: Any, skip: bool, _options: Any) -> bool:
    """Leave out "Alias for field number 0": the class's own text describes its fields."""
    return skip or str(getattr(member, "__doc__", "")).startswith("Alias for field number")


def show_arguments_once(_app: Any, _what: Any, _name: str, member: Any, *_: Any) -> tuple[str, None] | None:
    """All errors take the arguments of their root; naming them at each would hide what differs."""
    repeats = isinstance(member, type) and issubclass(member, lamina.LaminaError)
    return ("", None) if repeats and member is not lamina.LaminaError else None


def search_in_order(_app: Any, doctree: Any) -> None:
    """Leave a name in a signature that several packages have to `link_across_packages`, which knows their order."""
    for node in doctree.findall(pending_xref):
        node.attributes.pop("refspecific", None)


def link_across_packages(app: Sphinx, env: BuildEnvironment, node: Any, text: Any) -> Any:
    """Find a name that a docstring gives without the package that holds it."""
    domain = env.domains.python_domain
    for package in PACKAGES:
        name = f"{package}.{node.get('reftarget')}"
        if node.get("refdomain") == "py" and name in domain.objects:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)
    return None


def setup(app: Sphinx) -> None:
    read_private_modules()
    napoleon.GoogleDocstring = Docstring
    app.connect("env-check-consistency", check_that_nothing_is_missing)
    app.connect("doctree-read", search_in_order)
    app.connect("missing-reference", link_across_packages)
    app.connect("autodoc-process-signature", show_arguments_once)
    app.connect("autodoc-skip-member", skip_fields_of_tuples)
