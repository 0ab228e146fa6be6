"""Docstrings for the reference: Sphinx's roles, which our docstrings name things by, as code."""

import re

import griffe


def without_roles(text: str) -> str:
    """``:func:`~psis_d2.ops.mean_field` `` and its kin as the code alone."""
    return re.sub(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`", r"`\1`", text)


class PlainRoles(griffe.Extension):
    """mkdocs.yml names this class's file."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = without_roles(obj.docstring.value)
