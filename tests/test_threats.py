"""The threat model, THREATS.md: its tests exist, and files of others are opened by safe readers only."""

import ast
import re
from pathlib import Path

import pytest

import mgkit

TESTS = Path(__file__).parent
KIT = Path(mgkit.__file__).parent
NAMED = re.findall(r"`tests/([\w/]+\.py)::(\w+)`", (TESTS / "THREATS.md").read_text(encoding="utf-8"))


def test_every_row_names_a_test():
    rows = [row for row in (TESTS / "THREATS.md").read_text(encoding="utf-8").splitlines() if row[:1] == "|"]
    assert len(rows) > 20 and all("::test_" in row for row in rows[2:])


@pytest.mark.parametrize(("file", "name"), NAMED, ids="::".join)
def test_every_named_test_exists(file, name):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def calls(*names):
    """(file, name, {keyword: its source}) of every call in the kit of a function that ends so."""
    for path in sorted(KIT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).endswith(names):
                yield path.name, name, {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_pictures_are_opened_with_a_list_of_formats():
    found = [(file, "formats" in keywords) for file, _, keywords in calls("Image.open")]
    assert found and all(given for _, given in found), found


def test_nothing_is_unpickled_freely():
    assert all(keywords["weights_only"] == "True" for _, _, keywords in calls("torch.load"))
    assert all(keywords.get("allow_pickle", "False") == "False" for _, _, keywords in calls("np.load"))
    assert [*calls("torch.load")] and [*calls("np.load")]
    unsafe = {"pickle.load", "pickle.loads", "joblib.load", "eval", "exec", "os.system", "faiss.read_index"}
    assert not [call for call in calls(*unsafe) if call[1] in unsafe]


def test_yaml_gives_plain_values():
    assert {keywords["Loader"] for _, _, keywords in calls("yaml.load")} <= {"loader"}
    assert not [*calls("yaml.unsafe_load", "yaml.full_load", "yaml.load_all")]
