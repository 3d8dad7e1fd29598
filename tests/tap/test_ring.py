"""From the device to the host: loans run out without a wait, and uploads stay in place."""

import numpy as np
import pytest
import torch

from sidecar.tap.ring import NUM_LOANS, Loan, Ring, Upload

CPU = torch.device("cpu")


def examples() -> dict[str, torch.Tensor]:
    return {
        "sums": torch.zeros(4, 2, dtype=torch.float64),
        "ids": torch.zeros(3, dtype=torch.int64),
    }


def test_what_is_sent_is_read() -> None:
    """Each tensor lands at the beginning of its place, in its own type."""
    ring = Ring(examples(), CPU)
    loan = ring.take()
    assert loan is not None
    sums = torch.arange(6, dtype=torch.float64).reshape(3, 2) / 7
    ring.send(loan, {"sums": sums, "ids": torch.tensor([5, 6])})
    assert loan.is_ready
    np.testing.assert_array_equal(loan.read("sums", 3), sums)
    np.testing.assert_array_equal(loan.read("sums", 1), sums[:1])
    assert loan.read("ids").tolist() == [5, 6, 0]
    assert loan.read("ids").dtype == np.int64
    assert loan.read("sums").dtype == np.float64


def test_a_loan_keeps_its_step() -> None:
    """What is sent later, and what becomes of the sender's own tensors, changes no loan."""
    ring = Ring(examples(), CPU)
    first, second = ring.take(), ring.take()
    assert first is not None
    assert second is not None
    ids = torch.tensor([1, 2, 3])
    ring.send(first, {"ids": ids})
    ids += 10
    ring.send(second, {"ids": ids})
    assert first.read("ids").tolist() == [1, 2, 3]
    assert second.read("ids").tolist() == [11, 12, 13]


def test_a_result_computed_in_place_is_read_as_it_is() -> None:
    """On a CPU the target is the loan itself: sending a view of it copies nothing."""
    ring = Ring(examples(), CPU)
    loan = ring.take()
    assert loan is not None
    target = ring.target(loan)
    target["sums"][:2] = 3.0
    ring.send(loan, {"sums": target["sums"][:2]})
    assert loan.read("sums", 2).tolist() == [[3.0, 3.0]] * 2
    assert loan.read("sums").ctypes.data == target["sums"].data_ptr()


@pytest.mark.parametrize("num_loans", [1, NUM_LOANS])
def test_an_empty_ring_says_so_at_once(num_loans) -> None:
    """With every loan taken there is none; each one given back can be taken again."""
    ring = Ring(examples(), CPU, num_loans)
    loans = [ring.take() for _ in range(num_loans)]
    assert len({id(loan) for loan in loans}) == num_loans
    assert ring.take() is None
    assert loans[0] is not None
    ring.give_back(loans[0])
    assert ring.take() is loans[0]
    assert ring.take() is None


def test_loans_share_no_memory() -> None:
    """Steps under way at once do not write into one another."""
    ring = Ring(examples(), CPU)
    loans = [loan for loan in (ring.take() for _ in range(NUM_LOANS)) if loan is not None]
    assert len({loan.host["sums"].data_ptr() for loan in loans}) == NUM_LOANS


class Event:
    """A CUDA event that is told when it has come."""

    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come


def test_a_loan_under_way_is_ready_when_its_event_has_come() -> None:
    """On a GPU the copies are awaited by asking, never by waiting."""
    event = Event()
    loan = Loan({}, event)
    assert not loan.is_ready
    event.has_come = True
    assert loan.is_ready


def test_an_upload_stays_at_its_address() -> None:
    """CUDA graphs may bake it: every put writes the same memory, from its beginning."""
    upload = Upload(4, CPU)
    addresses = set()
    for numbers in ([1, 2, 3, 4], [9], [7, 8]):
        view = upload.put(np.array(numbers, np.int64))
        addresses.add(view.data_ptr())
        assert view.tolist() == numbers
    assert addresses == {upload.device.data_ptr()}
    assert upload.device.tolist() == [7, 8, 3, 4]


def test_an_upload_through_stages_uses_each_in_turn() -> None:
    """As on a GPU: a stage is not written again before all the others were."""
    upload = Upload(2, CPU)
    upload._stages.extend(torch.zeros(2, dtype=torch.int64) for _ in range(3))
    stages = list(upload._stages)
    for number in range(1, 4):
        assert upload.put(np.array([number])).tolist() == [number]
    assert sorted(int(stage[0]) for stage in stages) == [1, 2, 3]
    upload.put(np.array([4]))
    assert sorted(int(stage[0]) for stage in stages) == [2, 3, 4]
