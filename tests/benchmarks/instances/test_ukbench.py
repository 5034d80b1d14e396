"""UKBench as it is distributed: objects of four images."""

from benchmark_trees import ukbench_files
from support import answers, one_line_error, ranked, write_tree

from mgkit.benchmarks.instances.ukbench import ukbench


def test_ukbench_down_to_the_last_object(tmp_path):
    found = ukbench(write_tree(tmp_path, *ukbench_files([0, 1, 2549])))
    expected = {
        f"ukbench{4 * number + k:05d}.jpg": [
            f"ukbench{4 * number + other:05d}.jpg" for other in range(4) if other != k
        ]
        for number in (0, 1, 2549)
        for k in range(4)
    }
    assert answers(found) == expected
    assert (found.measure, sorted(ranked(found))) == ("score", sorted(expected))


def test_an_incomplete_four_of_ukbench_is_named_or_left_out(tmp_path, capsys):
    root = write_tree(tmp_path, *ukbench_files([0, 1, 2, 3])[1:-1])
    with one_line_error(
        ValueError, tmp_path, "object 0 ", "ukbench00000.jpg", "3 images", "on_unreadable=skip"
    ):
        ukbench(root)
    found = ukbench(root, incomplete="skip")
    [line] = capsys.readouterr().out.splitlines()
    assert "2 of 4 groups" in line and "object 0 " in line and str(tmp_path) in line
    assert answers(found) == answers(ukbench(write_tree(tmp_path / "whole", *ukbench_files([1, 2]))))
    assert sorted(ranked(found)) == [f"ukbench{number:05d}.jpg" for number in range(4, 12)]


def test_ukbench_without_a_whole_object_is_refused(tmp_path):
    with one_line_error(ValueError, tmp_path, "all 2 groups are incomplete"):
        ukbench(write_tree(tmp_path, *ukbench_files([0, 1])[1:-1]), incomplete="skip")
