"""Published sets, reduced or empty: fetched from a local server, and checked against faulty folders."""

import io
import json
import os
import shutil
import tarfile
import time
import types
import zipfile
from dataclasses import replace
from functools import partial
from hashlib import sha256

import pytest
from servers import Server, announcing, breaking_off, running, status, whole
from support import one_line_error

from mgkit.benchmarks.__main__ import main
from mgkit.benchmarks.archives import ArchiveError
from mgkit.benchmarks.fetch import examine, fetch_benchmark, survey
from mgkit.benchmarks.find import BENCHMARKS
from mgkit.benchmarks.instances import revisited
from mgkit.benchmarks.instances.revisited import BROKEN_IN_PARIS, read_revisited_gnd
from mgkit.benchmarks.published import numbered
from mgkit.machine.download import DownloadError

NAMES = (
    "holidays", "ukbench", "copydays", "roxford5k", "rparis6k", "disc21",
    "gldv2", "instre", "ilias", "sop", "cub200", "cars196", "inshop",
)  # fmt: skip
BY_HAND = ("disc21", "cars196", "inshop")


def jpeg(name):
    """What stands for an image: nothing here decodes one."""
    return b"\xff\xd8" + name.encode()


def tar_of(*names, kind=tarfile.REGTYPE):
    """A tar.gz archive with such a file under each name."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(jpeg(name)), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(jpeg(name)))
    return content.getvalue()


def zip_of(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, jpeg(name))
    return content.getvalue()


# As each set lies on its server: reduced archives, in which there is also what is not wanted.
SERVED = {
    "holidays": {
        "jpg1.tar.gz": tar_of("jpg/100000.jpg", "jpg/100001.jpg", "jpg/README"),
        "jpg2.tar.gz": tar_of("jpg/149900.jpg", "jpg/149901.jpg"),
        "holidays-rotate.yaml": b'{"100000.jpg": 90}',
    },
    "ukbench": {
        "ukbench.zip": zip_of(
            "full/ukbench00000.jpg",
            "full/ukbench00001.jpg",
            "thumbnails/ukbench00000.jpg",
            "__MACOSX/full/._ukbench00000.jpg",
        )
    },
    "copydays": {
        "copydays_original.tar.gz": tar_of("200000.jpg", "200100.jpg"),
        "copydays_strong.tar.gz": tar_of("copydays_strong/200001.jpg", "copydays_strong/200002.jpg"),
        "copydays_crop.tar.gz": tar_of("crops/10/200000.jpg", "crops/80/200000.jpg"),
        "copydays_jpeg.tar.gz": tar_of("./jpegqual/3/200000.jpg", "./jpegqual/75/200000.jpg"),
    },
    "roxford5k": {
        "oxbuild_images-v1.tgz": tar_of("all_souls_000000.jpg", "oxford_000001.jpg"),
        "gnd_roxford5k.pkl": b"pickle",
    },
    "rparis6k": {
        "paris_1-v1.tgz": tar_of(
            "paris/defense/paris_defense_000000.jpg", f"paris/louvre/{BROKEN_IN_PARIS[0]}"
        ),
        "paris_2-v1.tgz": tar_of("paris/eiffel/paris_eiffel_000000.jpg"),
        "gnd_rparis6k.pkl": b"pickle",
    },
    "gldv2": {
        "gldv2_index_images_000.tar": tar_of("0/1/2/0123456789abcdef.jpg", "./f/f/0/ff00000000000000.jpg"),
        "gldv2_index_images_099.tar": tar_of("0/1/2/0120000000000000.jpg"),
        "gldv2_test_images_000.tar": tar_of("a/b/c/abc0000000000000.jpg", "README"),
        "retrieval_solution_v2.1.csv": b"id,images,Usage",
    },
    "instre": {
        "instre.tar.gz": tar_of("./INSTRE-S1/01a_book/001.jpg", "./INSTRE-S1/01a_book/001.txt", "README"),
        "gnd_instre.mat": b"mat",
    },
    "ilias": {
        "ilias_core.tar": tar_of(
            "ilias_core/bold_000/query/Q000_00.jpg", "ilias_core/bold_000/pos/P000_00.jpg", "ilias_core/._x"
        )
    },
    "sop": {
        "Stanford_Online_Products.zip": zip_of(
            "Stanford_Online_Products/mug_final/1_0.JPG",
            "Stanford_Online_Products/Ebay_test.txt",
            "__MACOSX/Stanford_Online_Products/mug_final/._1_0.JPG",
        )
    },
    "cub200": {
        "CUB_200_2011.tgz": tar_of(
            "CUB_200_2011/images/001.Bird/1.jpg",
            "CUB_200_2011/images.txt",
            "CUB_200_2011/image_class_labels.txt",
            "attributes.txt",
        )
    },
}
# ... and as they lie here.
HERE = {
    "holidays": {
        "jpg/100000.jpg",
        "jpg/100001.jpg",
        "jpg/149900.jpg",
        "jpg/149901.jpg",
        "holidays-rotate.yaml",
    },
    "ukbench": {"full/ukbench00000.jpg", "full/ukbench00001.jpg"},
    "copydays": {
        *("original/200000.jpg", "original/200100.jpg", "strong/200001.jpg", "strong/200002.jpg"),
        *("crops/10/200000.jpg", "crops/80/200000.jpg", "jpegqual/3/200000.jpg", "jpegqual/75/200000.jpg"),
    },
    "roxford5k": {"jpg/all_souls_000000.jpg", "jpg/oxford_000001.jpg", "gnd_roxford5k.pkl"},
    "rparis6k": {"jpg/paris_defense_000000.jpg", "jpg/paris_eiffel_000000.jpg", "gnd_rparis6k.pkl"},
    "gldv2": {
        *(f"index/{path}.jpg" for path in ("0/1/2/0123456789abcdef", "f/f/0/ff00000000000000")),
        *("index/0/1/2/0120000000000000.jpg", "test/a/b/c/abc0000000000000.jpg"),
        "retrieval_solution_v2.1.csv",
    },
    "instre": {"INSTRE-S1/01a_book/001.jpg", "INSTRE-S1/01a_book/001.txt", "gnd_instre.mat"},
    "ilias": {f"ilias_core/bold_000/{path}" for path in ("query/Q000_00.jpg", "pos/P000_00.jpg")},
    "sop": {f"Stanford_Online_Products/{path}" for path in ("mug_final/1_0.JPG", "Ebay_test.txt")},
    "cub200": {
        f"CUB_200_2011/{path}" for path in ("images/001.Bird/1.jpg", "images.txt", "image_class_labels.txt")
    },
}


@pytest.fixture
def server():
    with running(Server()) as http:
        yield http
        http.released.set()


@pytest.fixture
def get(server, monkeypatch):
    """A function that fetches a reduced set from the server; options as those of `fetch_benchmark`."""

    def fetch(name, root, **options):
        if server.files is None:
            server.files = dict(SERVED[name])
        offered = [each for each in BENCHMARKS[name].archives if each.file_name in SERVED[name]]
        archives = tuple(replace(archive, sha256=None) for archive in offered)
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], archives=archives))
        local = {file: (server.url(file),) for file in SERVED[name]}
        return fetch_benchmark(
            name, root, **{"addresses": local, "timeout": 60.0, "waits": (0.0, 0.0)} | options
        )

    return fetch


def files_of(folder):
    """Paths of the files in a set's folder, without the records of hashes."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in paths if not path.endswith(".sha256")}


def stamps(root):
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def stand_in(monkeypatch, images, queries):
    """A reader of the revisited ground truth that gives these names."""
    truth = types.SimpleNamespace(images=tuple(images), queries=tuple(queries))
    monkeypatch.setattr(revisited, "read_revisited_gnd", lambda path: truth)


def write_set(root, name):
    """Write a set with as many images as published, all names of one file of one byte, to be fast."""
    folder, byte = root / name, root / ".byte"
    byte.write_bytes(b"1")
    originals = BENCHMARKS["copydays"].folders["original"]
    names = {
        "holidays": [f"1{g:03d}{n:02d}.jpg" for g in range(500) for n in range(3 if g < 491 else 2)],
        "ukbench": [f"ukbench{i:05d}.jpg" for i in range(10_200)],
        "copydays": [f"{2000 + i % originals}{i // originals:02d}.jpg" for i in range(3 * originals)],
    }
    for each, number in BENCHMARKS[name].folders.items():
        listed = names.get(name, [f"place_{i:06d}.jpg" for i in range(number)])
        (folder / each).mkdir(parents=True)
        for image in listed[originals:][:number] if each == "strong" else listed[:number]:
            os.link(byte, folder / each / image)
    for companion in BENCHMARKS[name].companions:
        os.link(byte, folder / companion.path)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Copydays with 20 originals and two levels; revisited Oxford and Paris with 100 images, queries last."""
    levels = {"original": 20, "strong": 30, "crops/10": 20, "jpegqual/3": 20}
    for name, folders in (("copydays", levels), ("roxford5k", {"jpg": 100}), ("rparis6k", {"jpg": 100})):
        monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], folders=folders))
    places = [f"place_{i:06d}" for i in range(100)]
    stand_in(monkeypatch, places[:30], places[30:])
    return places


# --- Fetching


def test_all_sets_are_in_the_table():
    assert tuple(BENCHMARKS) == NAMES
    totals = {name: sum(benchmark.folders.values()) for name, benchmark in BENCHMARKS.items()}
    assert totals == {
        "holidays": 1_491,
        "ukbench": 10_200,
        "copydays": 157 + 229 + 18 * 157,
        "roxford5k": 4_993 + 70,
        "rparis6k": 6_322 + 70,
        "disc21": 2_050_000,
        "gldv2": 761_757 + 117_577,
        "instre": 1_250 + 27_293,
        "ilias": 5_947,
        "sop": 120_053,
        "cub200": 11_788,
        "cars196": 16_185,
        "inshop": 52_712,
    }
    assert sum(BENCHMARKS["cars196"].other.folders.values()) == 16_185
    assert len(set(BROKEN_IN_PARIS)) == 20
    for benchmark in BENCHMARKS.values():
        stored = [archive.file_name for archive in benchmark.archives]
        assert len(set(stored)) == len(stored)
        filled = {folder for archive in benchmark.archives for folder in archive.fills}
        assert filled == (set(benchmark.folders) if benchmark.archives else set())
        for offered in (*benchmark.archives, *benchmark.companions):
            assert all(url.startswith(("http://", "https://", "ftp://")) for url in offered.urls)


@pytest.mark.parametrize("name", SERVED)
def test_a_set_comes_into_its_layout(tmp_path, get, server, name):
    assert get(name, tmp_path) == tmp_path / name
    assert files_of(tmp_path / name) == HERE[name]
    assert sorted(server.asked) == sorted(SERVED[name])
    before = stamps(tmp_path)
    get(name, tmp_path)
    assert len(server.asked) == len(SERVED[name]) and stamps(tmp_path) == before


def test_extracted_archives_are_not_needed_any_more(tmp_path, get, server):
    get("holidays", tmp_path)
    shutil.rmtree(tmp_path / ".downloads")
    get("holidays", tmp_path)
    assert len(server.asked) == 3 and not (tmp_path / ".downloads").exists()


def test_a_set_that_was_put_there_by_hand_is_only_completed(tmp_path, get, server):
    (write_set(tmp_path, "holidays") / "holidays-rotate.yaml").unlink()
    get("holidays", tmp_path)
    assert server.asked == ["holidays-rotate.yaml"]
    shutil.rmtree(write_set(tmp_path, "copydays") / "crops")
    server.files = SERVED["copydays"]
    get("copydays", tmp_path)
    assert server.asked[1:] == ["copydays_crop.tar.gz"]


def test_an_archive_that_was_put_there_by_hand_is_extracted(tmp_path, get, server):
    server.files = {}
    (tmp_path / ".downloads").mkdir()
    (tmp_path / ".downloads" / "ukbench.zip").write_bytes(SERVED["ukbench"]["ukbench.zip"])
    assert files_of(get("ukbench", tmp_path)) == HERE["ukbench"]
    assert not server.asked


def test_a_connection_that_breaks_off_is_continued(tmp_path, get, server):
    server.answers = [breaking_off, whole, breaking_off]
    assert files_of(get("holidays", tmp_path)) == HERE["holidays"]
    assert server.asked == ["jpg1.tar.gz"] * 2 + ["jpg2.tar.gz"] * 2 + ["holidays-rotate.yaml"]


def test_what_one_server_lacks_comes_from_the_next(tmp_path, get, server):
    local = {name: (server.url("absent"), server.url(name)) for name in SERVED["ukbench"]}
    assert files_of(get("ukbench", tmp_path, addresses=local)) == HERE["ukbench"]
    assert server.asked == ["absent", "ukbench.zip"]


def test_wrong_bytes_are_not_extracted_and_the_next_server_is_asked(tmp_path, server, monkeypatch):
    right = SERVED["copydays"]["copydays_original.tar.gz"]
    archive = replace(BENCHMARKS["copydays"].archives[0], sha256=sha256(right).hexdigest())
    monkeypatch.setitem(BENCHMARKS, "copydays", replace(BENCHMARKS["copydays"], archives=(archive,)))
    server.files = {"wrong": tar_of("200000.jpg"), "right": right}
    urls = {"copydays_original.tar.gz": (server.url("wrong"),)}
    with one_line_error(DownloadError, server.url("wrong"), sha256(right).hexdigest(), "copydays"):
        fetch_benchmark("copydays", tmp_path, addresses=urls, waits=())
    assert not (tmp_path / "copydays").exists() and not list((tmp_path / ".downloads").iterdir())
    urls = {"copydays_original.tar.gz": (server.url("wrong"), server.url("right"))}
    assert files_of(fetch_benchmark("copydays", tmp_path, addresses=urls, waits=())) == {
        "original/200000.jpg",
        "original/200100.jpg",
    }


def test_the_published_hashes_are_asked_for(tmp_path, server):
    server.files = SERVED["copydays"]
    local = {name: (server.url(name),) for name in server.files}
    known = "8b85b7914fd0145bc258bde3440f6a622243ca91ee085fe2025ce7bdeb0bfb8e"
    with one_line_error(DownloadError, known, "copydays_strong.tar.gz"):
        fetch_benchmark("copydays", tmp_path, addresses=local, waits=())
    assert files_of(tmp_path / "copydays") == {
        path for path in HERE["copydays"] if path[:4] in ("crop", "jpeg")
    }


def test_a_server_that_lies_about_the_length_leaves_no_half_archive(tmp_path, get, server):
    content = SERVED["ukbench"]["ukbench.zip"]
    server.answers = [announcing(len(content) - 30)]
    with one_line_error(ArchiveError, tmp_path / ".downloads" / "ukbench.zip", "remove it"):
        get("ukbench", tmp_path)
    assert not (tmp_path / "ukbench").exists()
    for path in (tmp_path / ".downloads").iterdir():  # as the message says
        path.unlink()
    server.answers = [announcing(len(content) + 30)] * 9
    with one_line_error(DownloadError, f"{len(content)} of {len(content) + 30} bytes"):
        get("ukbench", tmp_path)
    assert not (tmp_path / "ukbench").exists()


def test_what_did_not_come_is_named_after_all_else_has_come(tmp_path, get, server):
    server.answers = [status(404)]
    path = tmp_path / ".downloads" / "jpg1.tar.gz"
    with one_line_error(DownloadError, "holidays", server.url("jpg1.tar.gz"), "404", "by hand", path):
        get("holidays", tmp_path)
    assert files_of(tmp_path / "holidays") == {path for path in HERE["holidays"] if path[:7] != "jpg/100"}
    get("holidays", tmp_path)
    assert files_of(tmp_path / "holidays") == HERE["holidays"]


def test_no_server_is_an_error_that_names_all_addresses(tmp_path):
    nobody = ("http://127.0.0.1:9/ukbench.zip", "http://127.0.0.1:9/other.zip")
    with one_line_error(DownloadError, *nobody, "by hand", tmp_path / ".downloads" / "ukbench.zip"):
        fetch_benchmark("ukbench", tmp_path, addresses={"ukbench.zip": nobody}, waits=())
    assert not (tmp_path / "ukbench").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("disc21", "https://ai.meta.com"), ("cars196", "cars_annos.mat"), ("inshop", "DeepFashion.html")],
)
def test_what_nobody_offers_is_fetched_by_hand(tmp_path, name, said):
    with one_line_error(DownloadError, name, "by hand", said, tmp_path / name):
        fetch_benchmark(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_lists_that_come_with_the_images_are_fetched_for_images_that_are_there(
    tmp_path, get, server, monkeypatch
):
    monkeypatch.setitem(
        BENCHMARKS, "cub200", replace(BENCHMARKS["cub200"], folders={"CUB_200_2011/images": 1})
    )
    folder = get("cub200", tmp_path)
    (folder / "CUB_200_2011.tgz.contents.sha256").unlink()
    get("cub200", tmp_path)
    assert len(server.asked) == 1  # complete without the record
    (folder / "CUB_200_2011" / "images.txt").unlink()
    get("cub200", tmp_path)
    assert files_of(folder) == HERE["cub200"]


def test_an_evil_archive_leaves_nothing(tmp_path, get, server):
    server.files = SERVED["roxford5k"] | {"oxbuild_images-v1.tgz": tar_of("1.jpg", kind=tarfile.SYMTYPE)}
    with one_line_error(ArchiveError, "oxbuild_images-v1.tgz", "'1.jpg'", "a link"):
        get("roxford5k", tmp_path)
    assert not (tmp_path / "roxford5k").exists()


def test_the_embedded_set_is_left_alone(tmp_path, get, server):
    (tmp_path / "mini.json").write_text("{}")
    with one_line_error(ValueError, tmp_path, "mini.json", "another root"):
        get("holidays", tmp_path)
    assert not server.asked


@pytest.mark.parametrize("ask", [fetch_benchmark, lambda name, root: examine(root, name)])
def test_an_unknown_set_is_an_error(tmp_path, ask):
    with one_line_error(ValueError, "'oxford'", "roxford5k"):
        ask("oxford", tmp_path)


# --- Checking


def check(root, name, **options):
    return examine(root, name, **options).findings


@pytest.mark.parametrize("name", ["holidays", "ukbench", "copydays"])
def test_a_complete_set_has_no_findings(tmp_path, name):
    (write_set(tmp_path, name) / ".DS_Store").touch()
    number = sum(BENCHMARKS[name].folders.values())
    start = time.perf_counter()
    assert check(tmp_path, name) == []
    assert time.perf_counter() - start < 2  # moments, on any disk
    assert examine(tmp_path, name).summary == f"{name}: {number:,} of {number:,} images, complete"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_not_there_is_a_finding(tmp_path, name):
    [finding] = check(tmp_path, name)
    assert str(tmp_path / name) in finding
    assert ("below" if name in BY_HAND else f"fetch {name}") in finding


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_is_a_finding(tmp_path, name):
    (tmp_path / name).mkdir()
    assert any("no images" in finding for finding in check(tmp_path, name, hashes=True))
    shutil.rmtree(tmp_path / name)
    (tmp_path / name).touch()
    assert check(tmp_path, name)


def test_an_incomplete_holidays_is_described(tmp_path):
    folder = write_set(tmp_path, "holidays")
    for name in ("100000.jpg", "149901.jpg"):
        (folder / "jpg" / name).unlink()
    (folder / "holidays-rotate.yaml").unlink()
    assert check(tmp_path, "holidays") == [
        "jpg/ holds 1,489 images, published are 1,491",
        "missing: holidays-rotate.yaml, without which images are not turned upright",
        "groups without their query: 100000.jpg",
        "groups of one image: 149900.jpg",
    ]
    (folder / "jpg" / "149900.jpg").unlink()
    assert "499 groups, published are 500" in check(tmp_path, "holidays")
    assert examine(tmp_path, "holidays").summary == "holidays: 1,488 of 1,491 images, 4 findings"


def test_missing_images_of_ukbench_are_named(tmp_path, monkeypatch):
    numbers = partial(numbered, {"full": ("ukbench{:05d}.jpg", 100)})
    monkeypatch.setitem(
        BENCHMARKS, "ukbench", replace(BENCHMARKS["ukbench"], folders={"full": 100}, details=numbers)
    )
    folder = write_set(tmp_path, "ukbench") / "full"
    for i in (5, 99, 77, 78):
        (folder / f"ukbench{i:05d}.jpg").unlink()
    (folder / "ukbench00100.jpg").write_bytes(b"1")
    assert check(tmp_path, "ukbench") == [
        "full/ holds 97 images, published are 100",
        "missing in full/: ukbench00005.jpg, ukbench00077.jpg, ukbench00078.jpg and 1 more",
    ]


def test_missing_images_of_copydays_are_named(tmp_path, small):
    folder = write_set(tmp_path, "copydays")
    for name in ("crops/10/200000.jpg", "crops/10/201900.jpg", "original/200900.jpg"):
        (folder / name).unlink()
    assert check(tmp_path, "copydays") == [
        "original/ holds 19 images, published are 20",
        "crops/10/ holds 18 images, published are 20",
        "missing in original/, though strong/ has copies: 200900.jpg",
        "missing in crops/10/: 200000.jpg, 201900.jpg",
    ]


def test_missing_levels_of_copydays_are_named_in_a_line(tmp_path):
    for each in ("original", "strong"):
        (tmp_path / "copydays" / each).mkdir(parents=True)
    [finding] = check(tmp_path, "copydays")
    assert finding == "no images: crops/10/, crops/15/, crops/20/ and 17 more (3,212 images)"


def test_revisited_images_are_compared_with_the_ground_truth(tmp_path, monkeypatch, small):
    folder = write_set(tmp_path, "rparis6k")
    assert check(tmp_path, "rparis6k") == []
    stand_in(monkeypatch, [*small[:29], "place_other"], small[30:])
    assert check(tmp_path, "rparis6k") == [
        "missing in jpg/: place_other.jpg",
        "in jpg/ but not in gnd_rparis6k.pkl: place_000029.jpg",
    ]
    (folder / "gnd_rparis6k.pkl").unlink()
    assert check(tmp_path, "rparis6k") == ["missing: gnd_rparis6k.pkl, the queries and their ground truth"]


def test_a_ground_truth_that_cannot_be_read_is_a_finding(tmp_path, monkeypatch, small):
    monkeypatch.setattr(revisited, "read_revisited_gnd", read_revisited_gnd)
    folder = write_set(tmp_path, "roxford5k")
    [finding] = check(tmp_path, "roxford5k")
    assert str(folder / "gnd_roxford5k.pkl") in finding


def test_disc21_is_counted_and_named(tmp_path, monkeypatch):
    numbers = {"queries": 5, "references": 6, "train": 7}
    formats = {"queries": "Q{:05d}.jpg", "references": "R{:06d}.jpg", "train": "T{:06d}.jpg"}
    published = partial(numbered, {each: (formats[each], numbers[each]) for each in numbers})
    monkeypatch.setitem(
        BENCHMARKS, "disc21", replace(BENCHMARKS["disc21"], folders=numbers, details=published)
    )
    for each, number in numbers.items():
        (tmp_path / "disc21" / each).mkdir(parents=True)
        for i in range(number):
            (tmp_path / "disc21" / each / formats[each].format(i)).write_bytes(b"1")
    assert check(tmp_path, "disc21") == ["missing: *ground*truth*.csv, the ground truth"]
    (tmp_path / "disc21" / "dev_queries_groundtruth.csv").write_bytes(b"1")
    assert check(tmp_path, "disc21") == []
    (tmp_path / "disc21" / "references" / "R000003.jpg").unlink()
    assert check(tmp_path, "disc21") == [
        "references/ holds 5 images, published are 6",
        "missing in references/: R000003.jpg",
    ]


def test_what_is_no_part_of_a_set_is_named(tmp_path, small):
    folder = write_set(tmp_path, "copydays")
    for name in ("original/200000.jpg", "original/200001.jpg"):
        (folder / name).unlink(missing_ok=True)
    (folder / "original/200000.jpg").touch()
    (folder / "crops/10/200100.jpg").unlink()
    (folder / "crops/10/200100.jpg").symlink_to("nowhere")
    (folder / "original/1.jpg").write_bytes(b"1")
    (folder / "original/200000.png").write_bytes(b"1")
    (folder / "original/copydays").symlink_to(folder)  # no way in circles
    (folder / "crops/11").mkdir()
    assert check(tmp_path, "copydays") == [
        "empty: crops/10/200100.jpg, original/200000.jpg",
        "not part of the set: crops/11/, original/1.jpg, original/200000.png and 1 more",
    ]


def test_an_unreadable_folder_is_a_finding(tmp_path, monkeypatch, small):
    folder, scandir = write_set(tmp_path, "copydays"), os.scandir

    def closed(path):
        if path == folder / "original":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert f"cannot be read: {folder / 'original'}" in check(tmp_path, "copydays")


def test_hashes_are_compared_with_the_records(tmp_path, get):
    folder = get("holidays", tmp_path)
    counts = check(tmp_path, "holidays")
    assert check(tmp_path, "holidays", hashes=True) == counts
    (folder / "jpg" / "100001.jpg").write_bytes(b"tampered")
    (folder / "jpg" / "149901.jpg").unlink()
    (folder / "holidays-rotate.yaml").write_bytes(b"tampered")
    findings = check(tmp_path, "holidays", hashes=True)
    for finding in (
        "changed since holidays-rotate.yaml.sha256: holidays-rotate.yaml",
        "changed since jpg1.tar.gz.contents.sha256: jpg/100001.jpg",
        "gone since jpg2.tar.gz.contents.sha256: jpg/149901.jpg",
    ):
        assert finding in findings
    (folder / "jpg1.tar.gz.contents.sha256").write_text("hello\n")
    assert any("should hold a SHA-256" in finding for finding in check(tmp_path, "holidays", hashes=True))


def test_hashes_that_nobody_recorded_are_a_finding(tmp_path, small):
    write_set(tmp_path, "copydays")
    [finding] = check(tmp_path, "copydays", hashes=True)
    assert "no hashes are recorded" in finding


@pytest.mark.parametrize("name", ["holidays", "ukbench", "copydays"])
def test_the_embedded_set_is_smaller_and_lacks_nothing(mini_root, name):
    assert json.loads((mini_root / "mini.json").read_text())
    assert check(mini_root, name, hashes=True) == []
    summary = examine(mini_root, name).summary
    assert "the embedded set" in summary and summary.endswith("complete")


# --- From a shell


def test_a_survey_has_a_line_for_each_set_that_is_there(mini_root, tmp_path):
    assert survey(tmp_path) == ""
    lines = survey(mini_root).splitlines()
    assert [line.split(":")[0] for line in lines] == ["holidays", "ukbench", "copydays"]
    (tmp_path / "ukbench").mkdir()
    assert len(survey(tmp_path).splitlines()) > 1  # what is missing stands below


def test_the_command_line_checks(tmp_path, capsys, small):
    folder = write_set(tmp_path, "roxford5k")
    assert main(["check", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "roxford5k: 100 of 100 images, complete\n"
    (folder / "jpg" / "place_000001.jpg").unlink()
    assert main(["check", "roxford5k", "ukbench", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "roxford5k: 99 of 100 images, 2 findings" and out[1].startswith("  jpg/ holds 99 images")
    assert out[3] == "ukbench: not there"


def test_the_command_line_fetches(tmp_path, server, monkeypatch, capsys):
    server.files = SERVED["ukbench"]
    [archive] = BENCHMARKS["ukbench"].archives
    local = replace(archive, urls=(server.url("ukbench.zip"),))
    monkeypatch.setitem(BENCHMARKS, "ukbench", replace(BENCHMARKS["ukbench"], archives=(local,)))
    assert main(["fetch", "ukbench", "--root", str(tmp_path)]) == 1  # it is a reduced one
    assert files_of(tmp_path / "ukbench") == HERE["ukbench"]
    assert "2 of 10,200 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"), [(["fetch", "disc21"], "terms"), (["fetch", "x"], "'x'"), (["check"], "none of")]
)
def test_the_command_line_says_what_is_wrong_in_a_line(tmp_path, capsys, arguments, said):
    assert main([*arguments, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
