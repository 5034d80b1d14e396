"""Several processes against the same on one: gathered rows and sums; and nothing of it in a process alone."""

import time

import numpy as np
import pytest
import torch
from support import in_processes, one_line_error

from mgkit.machine.distributed import (
    all_gather,
    all_gather_object,
    all_gather_rows,
    all_reduce,
    backend_of,
    broadcast_object,
    is_main,
    main_first,
    process_group,
    rank,
    run_in_all,
    world_size,
)

COUNTS = [3, 5, 1]  # samples of three processes


@pytest.mark.parametrize(
    ("kind", "xccl", "backend"),
    [
        ("cpu", False, "gloo"),
        ("cuda", False, "cpu:gloo,cuda:nccl"),
        ("xpu", True, "cpu:gloo,xpu:xccl"),
        ("xpu", False, None),
        ("mps", False, None),
    ],
)
def test_the_backend_is_that_of_the_device(monkeypatch, kind, xccl, backend):
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "xccl" and xccl)
    assert backend_of(torch.device(kind)) == backend


def test_several_processes_on_apple_s_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with one_line_error(ValueError, "mps", "one process, not 2"), process_group():
        pass


def rows_of(count):
    """The rows [9,4] of all processes, and this one's."""
    everything = torch.randn(
        sum(COUNTS[:count]), 4, 3, 3, generator=torch.Generator().manual_seed(0)
    ).double()
    first = sum(COUNTS[: rank()])
    return everything, everything[first : first + COUNTS[rank()]].clone().requires_grad_()


def gathered(counts):
    """The rows from all_gather_rows and their gradient here when process k weighs its result by k + 1."""
    _, mine = rows_of(len(counts))
    gathered_rows = all_gather_rows(mine, counts)
    ((rank() + 1) * gathered_rows.square().sum()).backward()
    return gathered_rows.detach().numpy().copy(), mine.grad.numpy().copy()


@pytest.mark.parametrize("count", [2, 3])
def test_gathered_rows_are_in_rank_order_and_gradients_flow_back_from_all(count):
    everything = rows_of(count)[0]
    found = in_processes(count, gathered, COUNTS[:count])
    for rows, _ in found:
        assert np.array_equal(rows, everything.numpy())
    weights = sum(range(1, count + 1))
    gradients = np.concatenate([gradient for _, gradient in found])
    assert gradients == pytest.approx(2 * weights * everything.numpy(), abs=1e-12)


def told():
    """What every process learns of the others."""
    return (
        (rank(), world_size(), is_main()),
        all_gather([rank(), 10 * rank()]),
        all_gather_object({"rank": rank()}),
        broadcast_object("from the main one" if is_main() else None),
        all_reduce(torch.tensor([1.0, rank()])).tolist(),
    )


def test_every_process_learns_of_the_others():
    for which, found in enumerate(in_processes(3, told)):
        assert found == (
            (which, 3, which == 0),
            [[0, 0], [1, 10], [2, 20]],
            [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "from the main one",
            [3.0, 3.0],
        )


def test_a_process_alone_has_nobody_to_ask():
    rows = torch.rand(2, 3, requires_grad=True)
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert all_gather([4, 5]) == [[4, 5]] and all_gather_object("x") == ["x"] and broadcast_object("x") == "x"
    assert all_reduce(rows) is rows and all_gather_rows(rows, [2]) is rows


def raised_in_all(failing):
    """What each process raises where some fail, and where the main one alone works and fails."""
    caught = []
    for here in (True, is_main()):

        def work():
            if rank() in failing:
                raise FileNotFoundError(f"of {rank()}")
            return rank()

        try:
            caught.append(run_in_all(work, here=here))
        except OSError as error:
            caught.append(f"{type(error).__name__} {error}")
    return caught


def test_an_error_in_one_process_is_raised_by_all_and_nobody_waits():
    assert in_processes(3, raised_in_all, [1, 2]) == [
        ["FileNotFoundError of 1", 0],
        ["FileNotFoundError of 1", None],
        ["FileNotFoundError of 2", None],
    ]
    assert in_processes(2, raised_in_all, [0]) == [["FileNotFoundError of 0"] * 2] * 2


def written_first(path):
    """The main process leaves a file that the others find."""

    def work():
        if is_main():
            time.sleep(0.2)
            path.write_text("found")
        return path.read_text(), rank()

    return main_first(work)


def test_the_main_process_is_the_first_where_it_leaves_files_for_the_others(tmp_path):
    assert in_processes(2, written_first, tmp_path / "file") == [("found", 0), ("found", 1)]
    assert main_first(lambda: "alone") == "alone"
