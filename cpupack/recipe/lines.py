"""Finds the line of each key in a TOML text.

tomli returns values without positions, but an error message needs the line. This small scanner reads only text that
tomli has already accepted. It follows the grammar of TOML 1.0 (https://toml.io/en/v1.0.0) just far enough to skip
strings, comments, multi-line values and nested tables correctly.
"""

from __future__ import annotations

import re

import tomli

Key = tuple[str | int, ...]
"""The path of a value in the parsed document: table keys and array indices."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_MULTI_BASIC = re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL)
_MULTI_LITERAL = re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}#\n]+")
_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")


def key_lines(text: str) -> dict[Key, int]:
    """Return the 1-based line of every table, key and array element of ``text``.

    A table without a header of its own gets the line of its first key. ``text`` must be valid TOML.
    """
    return _Scanner(text).document()


def split_key(text: str) -> tuple[tuple[str, ...], int]:
    """Return the dotted key at the start of ``text``, and its end. Raises ValueError if there is no key."""
    return _Scanner(text).dotted_key()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Key, int] = {}
        self.array_tables: dict[Key, int] = {}
        self._counted = (0, 1)

    def document(self) -> dict[Key, int]:
        table: Key = ()
        while True:
            self._skip(_FILLER)
            if self.at >= len(self.text):
                return self.lines
            if self.text.startswith("[[", self.at):
                table = self._header(2)
            elif self.text[self.at] == "[":
                table = self._header(1)
            else:
                self._key_value(table)

    def dotted_key(self) -> tuple[tuple[str, ...], int]:
        parts = [self._simple_key()]
        end = self.at
        while True:
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(parts), end
            self.at += 1
            self._skip(_SPACE)
            parts.append(self._simple_key())
            end = self.at

    def _header(self, brackets: int) -> Key:
        start = self.at
        self.at += brackets
        self._skip(_SPACE)
        parts, _ = self.dotted_key()
        self._skip(_SPACE)
        self.at += brackets
        key: Key = ()
        for part in parts[:-1]:
            key = self._current((*key, part))
            self._note(key, start)
        key = (*key, parts[-1])
        self._note(key, start)
        if brackets == 2:
            index = self.array_tables.get(key, -1) + 1
            self.array_tables[key] = index
            key = (*key, index)
            self._note(key, start)
        else:
            # A header may come after dotted keys or sub-tables of the same table. A reader looks for the header.
            self.lines[key] = self._line(start)
        return key

    def _current(self, key: Key) -> Key:
        """Return ``key``, or its newest element where ``key`` is an array of tables."""
        return (*key, self.array_tables[key]) if key in self.array_tables else key

    def _key_value(self, table: Key) -> None:
        start = self.at
        parts, _ = self.dotted_key()
        key = table
        for part in parts:
            key = (*key, part)
            self._note(key, start)
        self._skip(_SPACE)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(key)

    def _value(self, key: Key) -> None:
        start = self.text[self.at]
        if start == "[":
            self._array(key)
        elif start == "{":
            self._inline_table(key)
        elif start in "\"'":
            self._string()
        else:
            self._skip(_SCALAR)

    def _array(self, key: Key) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_FILLER)
            if self.text[self.at] == "]":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._note((*key, index), self.at)
            self._value((*key, index))
            index += 1

    def _inline_table(self, key: Key) -> None:
        self.at += 1
        while True:
            self._skip(_FILLER)
            if self.text[self.at] == "}":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._key_value(key)

    def _simple_key(self) -> str:
        if self.text.startswith(('"', "'"), self.at):
            start = self.at
            pattern = _BASIC if self.text[start] == '"' else _LITERAL
            self._take(pattern)
            return str(tomli.loads(f"key = {self.text[start : self.at]}")["key"])
        return self._take(_BARE)

    def _string(self) -> None:
        for opening, pattern in (
            ('"""', _MULTI_BASIC),
            ("'''", _MULTI_LITERAL),
            ('"', _BASIC),
            ("'", _LITERAL),
        ):
            if self.text.startswith(opening, self.at):
                self._take(pattern)
                return

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise ValueError(f"not TOML at line {self._line(self.at)}")
        self.at = match.end()
        return match[0]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _note(self, key: Key, position: int) -> None:
        self.lines.setdefault(key, self._line(position))

    def _line(self, position: int) -> int:
        # Positions mostly grow, so counting continues from the last one.
        before, line = self._counted if self._counted[0] <= position else (0, 1)
        line += self.text.count("\n", before, position)
        self._counted = (position, line)
        return line
