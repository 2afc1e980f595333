"""Files of the served page: whole, without inline parts, and without a way from text to markup."""

import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from whence.page.document import make_page
from whence.v1.generation_pb2 import GenerationStarted
from whence_server.http.page.files import load_document, load_files

MODULES = {name: file.content.decode() for name, file in load_files().items() if ".js" in name}
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([^"]+)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)
PASSED_ON = re.compile(r"^export \{([^}]*)\};$", re.MULTILINE)
TOP_LEVEL = re.compile(r"^(?:async )?(?:function\*?|class|const|let|var) (\w+)", re.MULTILINE)
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|"
    r"createContextualFragment|setAttribute\(\"(?:style|on)|srcdoc|javascript:"
)


def names_in(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_others_export(name: str) -> None:
    text = MODULES[name]
    found = IMPORT.findall(text)
    assert len(found) == len(re.findall(r"^import ", text, re.MULTILINE))
    for listed, other in found:
        exported = {*EXPORT.findall(MODULES[other])}
        for passed_on in PASSED_ON.findall(MODULES[other]):
            exported.update(names_in(passed_on))
        assert set(names_in(listed)) <= exported, other
    for view in re.findall(r'/, "(\w+)"\],$', text, re.MULTILINE):
        assert f"{view}.js" in MODULES
    assert not MARKUP.search(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_document_has_no_inline_parts() -> None:
    content = load_document().content.decode()

    class Parts(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            assert tag != "style"
            assert "style" not in given
            assert not [name for name in given if name.startswith("on")]
            assert tag != "script" or given["src"] == "/page/app.js"
            for address in (given.get("src"), given.get("href")):
                assert address is None or address.startswith(("/", "#", "data:"))
                if address is not None and address.startswith("/page/"):
                    assert address.removeprefix("/page/") in load_files()

    Parts().feed(content)
    assert all(f'"/page/{name}"' in content for name in load_files())


def test_the_self_contained_page_joins_modules_without_a_clash() -> None:
    content = make_page(GenerationStarted(), None, [])
    (program,) = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    assert not re.findall(r"^(?:import|export) ", program, re.MULTILINE)
    counted = Counter(TOP_LEVEL.findall(program))
    assert max(counted.values()) == 1, counted
    assert not MARKUP.search(program)
