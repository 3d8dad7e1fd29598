"""What pooling must give: the definitions, row by row in float64, and requests cut into steps."""

from collections.abc import Iterable, Iterator

import numpy as np

from sidecar.tap.pooling import Part, Pooling, Rows
from sidecar.tap.rows import Batch, Plan, RowMap


def defined(rows: np.ndarray, pooling: Pooling, alpha: float = 0.0) -> np.ndarray:
    """[K] what `rows` [N, K] are pooled to, by the definition; NaN of no rows."""
    rows = rows.astype(np.float64)
    if not len(rows):
        return np.full(rows.shape[1], np.nan)
    if pooling is Pooling.EMA:
        value = rows[0]
        for row in rows:
            value = (1.0 - alpha) * value + alpha * row
        return value
    return {
        Pooling.LAST: lambda: rows[-1],
        Pooling.MEAN: lambda: rows.mean(0),
        Pooling.MAX: lambda: rows.max(0),
    }[pooling]()


def chosen(rows: np.ndarray, num_prompt: int, which: Rows) -> np.ndarray:
    """Those of a request's rows that are pooled."""
    return {
        Rows.ALL: rows,
        Rows.PROMPT: rows[:num_prompt],
        Rows.GENERATED: rows[num_prompt:],
    }[which]


def parts_of(plan: Plan, rows: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """[G, len(Part), K] the parts of each group, by a loop over its rows [T, K]."""
    parts = np.full((plan.num_groups, len(Part), rows.shape[1]), np.nan, np.float32)
    for group in range(plan.num_groups):
        mine = rows[plan.groups == group].astype(np.float64)
        ages = np.arange(len(mine))[::-1, None]
        weights = np.where(alphas > 0, alphas, 1.0) * (1.0 - alphas) ** ages
        parts[group] = [(weights * mine).sum(0), mine.max(0), mine[0], mine[-1]]
    return parts


Request = tuple[str, int, np.ndarray]  # id, prompt tokens, rows [N, K]


def steps(
    row_map: RowMap, requests: list[Request], cuts: Iterable[list[int]]
) -> Iterator[tuple[Plan, np.ndarray]]:
    """Plan and rows [T, K] of each step; `cuts`: at most how many rows of each request it takes."""
    done = {name: 0 for name, _, _ in requests}
    for cut in cuts:
        batch = [
            (name, prompt, rows, min(most, len(rows) - done[name]))
            for (name, prompt, rows), most in zip(requests, cut, strict=True)
        ]
        batch = [each for each in batch if each[3]]
        if not batch:
            continue
        starts = np.array([done[name] for name, *_ in batch])
        counts = np.array([count for *_, count in batch])
        taken = [rows[s : s + n] for (_, _, rows, n), s in zip(batch, starts, strict=True)]
        for name, _, _, count in batch:
            done[name] += count
        names, prompts = [each[0] for each in batch], np.array([each[1] for each in batch])
        yield row_map.plan(Batch(names, starts, counts, prompts)), np.concatenate(taken)
