"""Pages of documentation: links lead somewhere, paths exist, and short pages stay short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_index() -> None:
    for index in (ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"):
        listed = {target.partition("#")[0] for target in LINK.findall(prose(index))}
        pages = {page.name for page in index.parent.glob("*.md")} - {index.name}
        assert pages <= listed, pages - listed


@pytest.mark.parametrize(("name", "words"), [("README.md", 900), ("docs/design.md", 1500)])
def test_short_pages_stay_short(name: str, words: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").split()) <= words


BUILT = [
    "CONTRIBUTING.md",
    *(name for name in NAMES if name == "docs/design.md" or name.startswith("docs/decisions/")),
]
"""Pages that name source files."""
PACKAGES = (
    ROOT,
    ROOT / "server" / "whence_server",
    ROOT / "server" / "whence_server" / "engines" / "transformers",
)


@pytest.mark.parametrize("name", BUILT)
def test_named_source_files_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.*-])[\w/]+\.(?:py|proto)\b", text))
    known = {
        path.name
        for folder in ("client", "proto", "server", "tests")
        for path in (ROOT / folder).rglob("*.*")
    }
    for file in sorted(named - {"tests/unit/test_x.py", "test_x.py"}):
        if "/" in file:
            assert any((package / file).is_file() for package in PACKAGES), file
        else:
            assert file in known, file
