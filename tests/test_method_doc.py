"""References between docs/method.md and the code: sections cited in docstrings, and files cited in sections."""

from __future__ import annotations

import re
from pathlib import Path

from test_layout import modules_of

CITATION = re.compile(r"docs/method\.md, \"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FILE = re.compile(r"`([\w/]+\.(?:py|json|md))`|`([\w/]+/)`")


def method(repo: Path) -> str:
    return (repo / "docs" / "method.md").read_text()


def test_cited_sections_exist(repo: Path) -> None:
    headings = set(HEADING.findall(method(repo)))
    cited = {path: CITATION.findall(path.read_text()) for path in modules_of(repo).values()}
    assert sum(map(len, cited.values())) >= 12
    missing = [f"{path.name}: {title}" for path, titles in cited.items() for title in titles if title not in headings]
    assert not missing


def test_every_section_names_files_that_exist(repo: Path) -> None:
    text = method(repo)
    named = {file or folder for file, folder in FILE.findall(text)}
    assert len(named) >= 30
    assert not [name for name in named if not (repo / name).exists()]
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    without = [section.split("\n")[0] for section in sections if not FILE.search(section)]
    assert without == ["The idea", "Notation"]
