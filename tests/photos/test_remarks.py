"""What is not shown of a picture as it is stored is said: kept with its facts, counted in a line."""

from types import SimpleNamespace

import numpy as np
from PIL import Image
from support import noise, write_picture

from mgkit.photos.folder import find_photos
from mgkit.photos.looks import WithLooks, describe_remarks, photo_facts, read_facts


def test_remarks_are_kept_with_the_facts_and_counted(tmp_path):
    album = tmp_path / "album"
    write_picture(album / "a.png")
    for name in "bc":
        noise(0).convert("RGBA").save(album / f"{name}.png", icc_profile=b"no profile" * 30)
    noise(0).save(album / "d.gif", save_all=True, append_images=[Image.new("RGB", (24, 16))])
    (album / "e.png").write_text("no picture")
    images = find_photos([album], side=16).images
    facts = photo_facts(images, np.arange(5, dtype=np.uint64), folder=tmp_path / "seen")
    task = SimpleNamespace(folder=SimpleNamespace(images=images), facts=facts)
    remarks = WithLooks.remarks.fget(task)
    both = "what is transparent is shown on white; its colour profile cannot be used"
    one = "the first of several frames"
    assert remarks == {str(album / "b.png"): both, str(album / "c.png"): both, str(album / "d.gif"): one}
    assert read_facts(str(album / "b.png")).remark == both
    assert describe_remarks(remarks) == (
        "what is transparent is shown on white: 2 pictures; its colour profile cannot be used: 2 pictures; "
        "the first of several frames: 1 pictures"
    )
    assert not describe_remarks({})
