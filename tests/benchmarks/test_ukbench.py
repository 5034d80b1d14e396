"""UKBench as it is distributed: objects of four images."""

from benchmark_trees import ukbench_files
from support import answers, one_line_error, ranked, write_tree

from mgkit.benchmarks.ukbench import ukbench


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


def test_an_incomplete_four_of_ukbench_is_named(tmp_path):
    with one_line_error(ValueError, "object 1 ", "ukbench00004.jpg", "3 images"):
        ukbench(write_tree(tmp_path, *ukbench_files([0, 1])[:-1]))
