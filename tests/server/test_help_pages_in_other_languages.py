"""The help pages in other languages: none is missing, none is behind its English page, and each speaks of its node by
the names that the node has in that language."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
ENGLISH = ROOT / "locales" / "en"
LOCALES = {folder.name: folder for folder in ENGLISH.parent.iterdir() if folder != ENGLISH}
NODES = sorted(page.stem for page in DOCS.glob("*.md"))
WORKFLOWS = {file.stem for file in (ROOT / "workflows").glob("*.json")}
# Of each English page the sha256 when it was last brought into the other languages.
TRANSLATED = Path(__file__).with_name("translated_help_pages.json")
# Defaults that are no values but words about them.
DESCRIBED_DEFAULTS = ("on", "off", "empty", "the first file", "the first folder")
# What a line may have in common with its English one: names of files, choices, numbers.
ALIKE_ANYWHERE = re.compile(r"\*\*.+?\*\*|`.+?`|\[.*?\]\(.*?\)|[\d.,x×–…|<>/-]+")


def english(node: str) -> str:
    return (DOCS / f"{node}.md").read_text(encoding="utf-8")


def translated(language: str, node: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def outline(text: str) -> list[str]:
    """What kind of line follows what: headings, tables with their columns, lists, pictures, paragraphs."""
    kinds = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line.startswith("|"):
            kinds.append(f"row of {len(cells(line))}")
        else:
            kinds.append(re.match(r"#+|!\[|- |\d+\. |```|", line)[0] or "text")
    return kinds


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def table(text: str, number: int) -> list[list[str]]:
    """The cells of each row of one of a page's tables, which are counted from 0."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("|") and not inside:
            found.append([])
        inside = line.startswith("|")
        if inside:
            found[-1].append(cells(line))
    return found[number][2:]


def spoken_names(names: str, of: dict) -> str:
    """Names of inputs as a page lists them, in another language."""
    return ", ".join(of.get(name, {}).get("name", name) for name in names.split(", "))


def prose(text: str) -> list[str]:
    """The lines of a page without its examples of code."""
    return "".join(text.split("```")[::2]).splitlines()


def words_kept(text: str) -> list[str]:
    """What stays as it is in every language: files, commands, addresses, and how often which workflow is named."""
    workflows = (f"*{workflow}*" for workflow in sorted(WORKFLOWS))
    named = [f"{text.count(workflow)} x {workflow}" for workflow in workflows]
    return sorted(re.findall(r"`[^`\n]+`|\]\([^)]+\)", text)) + named


def quoted(text: str) -> list[str]:
    """What the page says that the node says."""
    return re.findall(r'\*\*"([^"]+)"', text)


def spoken_in(language: str) -> dict[str, str]:
    """What the editor says in English, and how it says that in another language. Nodes speak English only."""
    both = (json.loads((folder / "main.json").read_text(encoding="utf-8")) for folder in (ENGLISH, LOCALES[language]))
    english_texts, texts = (texts["mattingAnything"] for texts in both)
    return {sentence: texts[key] for key, sentence in english_texts.items()}


def differing(language: str, of) -> dict:
    """What `of` finds on the pages of a language, and what it should be, where that is not the same."""
    names = json.loads((LOCALES[language] / "nodeDefs.json").read_text(encoding="utf-8"))
    there = [node for node in NODES if (DOCS / node / f"{language}.md").is_file()]
    found = {node: of(translated(language, node), english(node), names[node]) for node in there}
    return {node: pair for node, pair in found.items() if pair[0] != pair[1]}


def test_all_pages_are_there_and_none_of_anything_else():
    there = {(page.stem, page.parent.name) for page in DOCS.glob("*/*")}
    assert there == {(language, node) for language in LOCALES for node in NODES}


def test_no_english_page_was_changed_after_the_others():
    recorded = json.loads(TRANSLATED.read_text(encoding="utf-8"))
    digests = {node: hashlib.sha256(english(node).encode()).hexdigest()[:16] for node in NODES}
    changed = {node: digest for node, digest in digests.items() if recorded.get(node) != digest}
    assert changed == {}, f"Bring the changes into web/docs/NODE/*.md, then write the new numbers to {TRANSLATED.name}."


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_pages_are_built_like_the_english_ones(language):
    assert differing(language, lambda text, original, _: (outline(text), outline(original))) == {}


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_pages_keep_what_reads_alike_in_every_language(language):
    assert differing(language, lambda text, original, _: (words_kept(text), words_kept(original))) == {}


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_pages_quote_what_is_seen_in_that_language(language):
    spoken = spoken_in(language)

    def quotes(text: str, original: str, _) -> tuple[list[str], list[str]]:
        seen, expected = quoted(text), quoted(original)
        for number, (quote, sentence) in enumerate(zip(seen, expected)):
            said = [theirs for ours, theirs in spoken.items() if ours.startswith(sentence)]
            if said:
                # Of a long sentence the page may quote the beginning.
                expected[number] = quote if any(theirs.startswith(quote) for theirs in said) else said[0]
        return seen, expected

    assert differing(language, quotes) == {}


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_pages_call_a_node_its_inputs_and_outputs_what_they_are_called_there(language):
    def called(text: str, original: str, names: dict) -> tuple[list[str], list[str]]:
        inputs = [spoken_names(row[0], names["inputs"]) for row in table(original, 0)]
        outputs = [output["name"] for output in names.get("outputs", {}).values()]
        listed = [row[0] for number in range(2 if outputs else 1) for row in table(text, number)]
        return [text.splitlines()[0], *listed], [f"# {names['display_name']}", *inputs, *outputs]

    assert differing(language, called) == {}


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_pages_give_the_same_defaults(language):
    def defaults(text: str, original: str, _) -> tuple[list[str], list[str]]:
        both = [(row[1], other[1]) for row, other in zip(table(text, 0), table(original, 0)) if len(other) == 3]
        both = [pair for pair in both if pair[1] not in DESCRIBED_DEFAULTS]
        return [said for said, _ in both], [default for _, default in both]

    assert differing(language, defaults) == {}


@pytest.mark.parametrize("language", sorted(LOCALES))
def test_no_line_was_left_in_english(language):
    def left(text: str, original: str, _) -> tuple[list[str], list[str]]:
        lines = zip(prose(text), prose(original))
        return [one for one, other in lines if one == other and len(ALIKE_ANYWHERE.sub("", one)) > 25], []

    assert differing(language, left) == {}
