"""How rare a false alarm has to be."""

from sidecar.fold.drift.policy import Policy


def test_the_default_is_the_budget_of_half_a_page_a_month() -> None:
    """3 months of 5-minute windows for traffic, 12 for each other channel, a week for tickets."""
    policy = Policy()

    assert (policy.run_length, policy.contrast_run_length) == (25_920, 103_680)
    assert (policy.ticket_run_length, policy.min_windows) == (2016, 2016)


def test_replicas_share_one_budget() -> None:
    """Eight detectors of one deployment are each eight times as slow to alarm by chance."""
    assert Policy().of_replicas(8) == Policy(8 * 25_920, 8 * 103_680, 8 * 2016)


def test_only_what_is_not_the_default_is_labelled() -> None:
    """A demo says with every verdict that it is one."""
    assert Policy().said("nothing found") == "nothing found"
    assert "demo preset" in Policy.demo().said("nothing found")
