"""``[package]``: name, version and other metadata of the wheel."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from cpupack.recipe.names import import_name
from cpupack.recipe.tables.base import Expects, Table, Text

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
# The canonical form of PEP 440, appendix B. Build tools would convert any other spelling to this form.
VERSION_PATTERN = (
    r"^([1-9][0-9]*!)?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*"
    r"((a|b|rc)(0|[1-9][0-9]*))?(\.post(0|[1-9][0-9]*))?(\.dev(0|[1-9][0-9]*))?$"
)


class Package(Table):
    """Name, version and description of the wheel."""

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=100),
        Expects("up to 100 letters, digits, dots, dashes and underscores, with a letter or digit at both ends"),
    ]
    """Distribution name. The import name is the same with every run of ``-``, ``.``, ``_`` replaced by one ``_``."""
    version: Annotated[
        str,
        StringConstraints(pattern=VERSION_PATTERN),
        Expects('a PEP 440 version in its normal form without a local part, such as "1.0.0" or "2.1rc1"'),
    ] = "0.1.0"
    """PEP 440 version of the wheel, without a local part."""
    description: Annotated[str, StringConstraints(pattern=r"^[^\r\n]*$"), Expects("a single line of text")] = ""
    """One line of text for the wheel's metadata."""
    license: Text | None = None
    """SPDX expression of the licence of the weights, such as ``Apache-2.0`` or ``CC-BY-NC-4.0``; ``LicenseRef-NAME``
    for one of your own. The wheel's metadata, its bill of materials and its model card say it. The code that cpupack
    puts into the wheel is under Apache-2.0."""
    authors: list[
        Annotated[
            str,
            StringConstraints(
                pattern=r"^[^<>\r\n\t ]([^<>\r\n]*[^<>\r\n\t ])?( <[^<>@\s]+@[^<>@\s]+>)?$", max_length=200
            ),
            Expects('"NAME" or "NAME <EMAIL>"'),
        ]
    ] = []
    """Who answers for the model: ``NAME`` or ``NAME <EMAIL>``, for the wheel's metadata."""
    urls: dict[
        str,
        Annotated[
            str,
            StringConstraints(pattern=r"^https?://[^\s/]+\S*$", max_length=500),
            Expects("an address that begins with https:// or http://"),
        ],
    ] = {}
    """Addresses for the wheel's metadata, by their labels: ``Homepage``, ``Documentation`` and others, each of at most
    32 characters."""

    @property
    def import_name(self) -> str:
        """Name of the package in the wheel, equal to the wheel's normalized distribution name."""
        return import_name(self.name)
