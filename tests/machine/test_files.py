"""Files: the project's root from anywhere in it, paths as given, and a file is there whole or not at all."""

import pytest

from mgkit.machine import files as module
from mgkit.machine.files import atomic_write, exclusive, find_path, project_root, write_text

pytestmark = pytest.mark.usefixtures("here")


def test_outside_a_project_the_root_is_the_working_directory(here):
    assert project_root() == here


def test_within_a_project_the_root_is_its_folder(bare_project):
    assert project_root() == bare_project


def test_a_path_is_found_from_the_working_directory_then_from_the_root(bare_project):
    (bare_project / "photos").mkdir()
    assert find_path("photos") == bare_project / "photos"
    (bare_project / "notebooks" / "photos").mkdir()
    assert find_path("photos").resolve() == bare_project / "notebooks" / "photos"
    assert str(find_path("nowhere")) == "nowhere"
    assert find_path(str(bare_project / "photos")) == bare_project / "photos"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("interrupted")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_text(path, "é✓\n")
    assert path.read_bytes() == "é✓\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")  # a part of a file's name that is no text
    assert path.read_text(encoding="utf-8") == "é✓\n" and list(path.parent.iterdir()) == [path]


def test_a_write_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "results.json"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def never():
    pytest.fail("nobody else has it")


def test_a_lock_whose_folder_was_renamed_while_one_waited_is_taken_anew(tmp_path, monkeypatch):
    """The holder sets the folder aside and makes another: who waited is to hold that one, not the one set aside."""
    (tmp_path / "run").mkdir()
    real, tries = module.is_locked, []

    def renamed_first(file):
        if not tries:
            (tmp_path / "run").rename(tmp_path / "run.1")
        tries.append(file.name)
        return real(file)

    monkeypatch.setattr(module, "is_locked", renamed_first)
    with exclusive(tmp_path / "run" / "lock", on_wait=never):
        assert len(tries) == 2 and (tmp_path / "run" / "lock").is_file()
