"""The help page of every node: what it says of inputs, defaults, choices and outputs is what the server offers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WORKFLOWS = {file.stem for file in (ROOT / "workflows").glob("*.json")}
ALL_PICTURES_BYTES = 1_500_000


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/api/object_info")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def table(page: Path, head: str) -> list[list[str]]:
    """The cells of each row of the page's table whose first column is called `head`."""
    found = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text_of(page), re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()] if found else []


def described_inputs(page: Path) -> dict[str, list[str]]:
    return {name: cells for cells in table(page, "Input") for name in cells[0].split(", ")}


def inputs_of(schema: dict) -> dict:
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_lists_the_inputs_and_outputs_that_its_node_has(schemas, page):
    schema = schemas[page.stem]
    inputs = set(inputs_of(schema)) - {"prompts"}
    assert {name for name in described_inputs(page) if not re.fullmatch(r"prompt\d|…", name)} == inputs
    assert [cells[0] for cells in table(page, "Output")] == schema["output_name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_asterisk_of_a_page_is_left_over(page):
    # "*where_clear* **estimated***: the colours.*" shows the last two: none may open after a letter and before a colon.
    assert not re.search(r"\w\*{3}[:;,]", text_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_gives_the_defaults_and_names_the_choices_of_its_node(schemas, page):
    described = described_inputs(page)
    for name, (kind, options, *_) in inputs_of(schemas[page.stem]).items():
        if name not in described or len(described[name]) < 3:
            continue
        _, default, meaning = described[name]
        if options.get("default") not in (None, ""):
            said = str(options["default"])
            if kind == "BOOLEAN":
                said = "on" if options["default"] else "off"
            assert default == said, f"{name}: {default}"
        assert ("(Advanced.)" in meaning) == bool(options.get("advanced")), name
        if kind == "COMBO" and "default" in options:
            missing = [choice for choice in options["options"] if f"**{choice}**" not in text_of(page)]
            listed = {cells[0] for cells in table(page, "View")}
            assert set(missing) <= listed | {options["default"]}, f"{name}: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_a_picture_and_names_a_workflow(page):
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of(page))
    assert pictures and all((DOCS / picture).is_file() for picture in pictures)
    example = text_of(page).split("## Example", 1)[1]
    assert WORKFLOWS & set(re.findall(r"\*([^*]+)\*", example))


def test_every_picture_is_shown_on_a_page_and_all_are_small():
    pictures = {file.name: file.stat().st_size for file in DOCS.glob("*.jpg")}
    assert pictures and all(any(f"({name})" in text_of(page) for page in PAGES) for name in pictures)
    assert sum(pictures.values()) < ALL_PICTURES_BYTES
