"""What a count allows to be said: an exact upper bound on a rate, and when a comparison is void."""

from collections.abc import Mapping
from typing import Final

from scipy.stats import chi2

CONFIDENCE: Final = 0.95
LEAST_SHARE: Final = 19 / 20  # of the months of a hard world that a plain CUSUM must alarm in


def upper_rate(count: int, exposure: float, confidence: float = CONFIDENCE) -> float:
    """Largest Poisson rate per unit of `exposure` that `count` events do not refute.

    Exact (Garwood, 1936): chi2_{2 (n + 1)} quantile / 2; one-sided. 1 in 160 months gives 0.0297.
    """
    return float(chi2.ppf(confidence, 2 * (count + 1)) / 2 / exposure)


def void(months: int, alarmed: Mapping[str, int]) -> list[str]:
    """Why a comparison proves nothing: hard worlds in which a plain CUSUM stayed quiet.

    alarmed: months, out of `months`, in which CUSUM on raw z alarmed, by world. Easy worlds prove
    nothing: in each, at least 19 of 20 months must alarm.
    """
    return [
        f"CUSUM on raw z alarmed in {count} of {months} months of {world} only"
        for world, count in alarmed.items()
        if count < LEAST_SHARE * months
    ]
