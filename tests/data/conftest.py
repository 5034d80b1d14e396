"""Four small images of two classes."""

import pytest
from support import write_tree

from mgkit.data.layouts import class_folders


@pytest.fixture
def images(tmp_path):
    return class_folders(write_tree(tmp_path / "four", "a/0.png", "a/1.png", "b/0.png", "b/1.png"))
