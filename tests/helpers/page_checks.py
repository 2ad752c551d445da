"""What every page must be: balanced HTML without scripts that refers to nothing outside itself."""

from __future__ import annotations

import html.parser
import re

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(html.parser.HTMLParser):
    """Parses a page strictly: every element is closed in order, every id is there once."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, blanks joined."""
        return " ".join(" ".join(self.pieces).split())

    def with_id(self) -> set[str]:
        ids = [attrs["id"] for _, attrs in self.tags if attrs.get("id")]
        assert len(ids) == len(set(ids)), "an id is there twice"
        return {str(each) for each in ids}


def check_page(text: str) -> Page:
    """Parse a page and assert that it stands alone; returns it for further checks."""
    assert text.startswith("<!doctype html>")
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(names)
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            assert name not in {"src", "srcset", "data", "action", "xlink:href"}, f"<{tag} {name}>"
            if name == "href":
                assert value is not None
                assert value.startswith("#"), value
                assert value[1:] in page.with_id(), value
    assert not re.search(r"@import|url\(|https?://|//\w+\.\w+/", text)
    assert names.count("h1") == 1
    for tag, attrs in page.tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert attrs["aria-label"]
    assert "None" not in page.text, page.text[max(0, page.text.find("None") - 80) :][:160]
    return page


def numbers(page: Page) -> set[str]:
    """Return every number on the page, thousands unseparated."""
    return {each.replace(",", "") for each in re.findall(r"-?\d[\d,]*(?:\.\d+)?", page.text)}
