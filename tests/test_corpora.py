"""Python's standard library as text: this Python's own, and a small library in its place."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from raynn import corpora
from raynn.corpora import PACKAGES, python_functions, python_text
from raynn.errors import DataError

LIBRARY = {
    "json/__init__.py": "import json\n",
    "json/tool.py": "tool = 1\r\nother = 2\n",
    "json/tests/test_tool.py": "left out\n",
    "ast.py": "# é\n",
    "abc.py": "",
    "tkinter/__init__.py": "left out\n",
    "sitecustomize.py": "not of the library\n",
    "site-packages/json.py": "not of the library\n",
    "json/data.txt": "not Python\n",
    "http/client.py": """
class Connection:
    @property
    def name(self):
        def inside():
            pass

        return 'é'

    class Inner:
        async def read(self):
            pass


def again():
    pass
""",
    "urllib/parse.py": "def again():\n    pass\n\n\nif True:\n    def hidden():\n        pass\n",
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library whose own folder is called test, which is no reason to leave it out."""
    root = tmp_path / "test"
    for name, text in LIBRARY.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (root / "json" / "latin.py").write_bytes("# é".encode("latin-1"))
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(root))
    return root


@pytest.mark.usefixtures("library")
def test_python_text_takes_modules_and_packages_in_order() -> None:
    assert python_text().to_pydict() == {
        "document": ["ast.py", "http/client.py", "json/__init__.py", "json/tool.py", "urllib/parse.py"],
        "text": [
            "# é\n",
            LIBRARY["http/client.py"],
            "import json\n",
            "tool = 1\nother = 2\n",
            LIBRARY["urllib/parse.py"],
        ],
    }


@pytest.mark.usefixtures("library")
def test_python_functions_are_whole_and_come_once() -> None:
    assert python_functions().to_pydict() == {
        "text": [
            "def name(self):\n    def inside():\n        pass\n\n    return 'é'",
            "async def read(self):\n    pass",
            "def again():\n    pass",
        ],
        "label": ["http", "http", "http"],
    }


@pytest.mark.parametrize("load", [python_text, python_functions])
def test_a_python_without_sources_is_named(load: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError) as caught:
        load()
    assert str(caught.value) == (
        f"{tmp_path} holds no Python files: this Python comes without its sources; name a file of your own"
    )


def test_this_python_has_a_corpus() -> None:
    table = python_text()
    documents = table["document"].to_pylist()
    assert documents == sorted(set(documents))
    assert {"asyncio/base_events.py", "argparse.py", "os.py"} <= set(documents)
    folders = {folder for document in documents for folder in document.split("/")[:-1]}
    assert {"asyncio", "json"} <= folders
    assert not folders & {"test", "tests", "site-packages", "dist-packages", "tkinter", "encodings"}
    assert 7e6 < sum(map(len, table["text"].to_pylist())) < 10e6
    assert table.equals(python_text())


def test_this_python_has_functions_of_every_package() -> None:
    table = python_functions()
    texts, labels = table["text"].to_pylist(), table["label"].to_pylist()
    counts = Counter(labels)
    assert set(counts) == set(PACKAGES)
    assert min(counts.values()) > 200
    assert 4000 < len(texts) == len(set(texts))
    for text in texts[::100]:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
