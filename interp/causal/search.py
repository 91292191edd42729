"""From scores to edges: the strongest, those grown from the logits, and ACDC, which tests edges one by one."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from interp.causal.graph import Graph

if TYPE_CHECKING:
    from interp.causal.edges import Patcher

AT_ONCE = 8
"""Edges that ACDC tries at first in one pass; twice as many after a pass in which none was kept."""


def strongest(
    graph: Graph, scores: Float[np.ndarray, "sender receiver"], n: int
) -> Bool[np.ndarray, "sender receiver"]:
    """The `n` edges with the highest scores; of equal ones the first of the graph."""
    kept = np.zeros_like(graph.allowed)
    order = np.argsort(-scores[graph.allowed], kind="stable")[:n]
    kept[tuple(np.argwhere(graph.allowed)[order].T)] = True
    return kept


def grown(graph: Graph, scores: Float[np.ndarray, "sender receiver"], n: int) -> Bool[np.ndarray, "sender receiver"]:
    """`n` edges, each time the highest-scoring one into a node that is already in, from the logits upwards: every one
    of them leads to the logits. Hanna et al. 2024, arXiv:2403.17806, section 3."""
    kept, waiting, inside = np.zeros_like(graph.allowed), [], set()

    def enter(node: str) -> None:
        inside.add(node)
        for receiver, name in enumerate(graph.receivers):
            if node in graph.readers[name]:
                for sender in np.flatnonzero(graph.allowed[:, receiver] & ~kept[:, receiver]):
                    heapq.heappush(waiting, (-scores[sender, receiver], int(sender), receiver))

    enter("logits")
    while waiting and kept.sum() < n:
        _, sender, receiver = heapq.heappop(waiting)
        kept[sender, receiver] = True
        if graph.senders[sender] not in inside and graph.senders[sender] != "input":
            enter(graph.senders[sender])
    return kept


def acdc(
    patcher: Patcher, worse: Callable[[np.ndarray], np.ndarray], threshold: float,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[Float[np.ndarray, "sender receiver"], Bool[np.ndarray, "sender receiver"]]:  # fmt: skip
    """Scores and kept edges. From the logits back, from the last sender to the first, an edge goes for good if the
    metric worsens by less than `threshold` from what it was; its score is that worsening. Conmy et al. 2023,
    arXiv:2304.14997.

    Most edges go: so several are tried in a pass, the first one, the first two, ... removed. Those before the first
    that is kept are decided as one by one, to the same edges, and the rest is tried again. A pass begins at the
    receiver's layer. Edges into a node that nothing reads any more go unasked. `worse` turns values [set prompt] into
    a number a set that rises as the model gets worse.
    """
    graph, finished = patcher.graph, patcher.finished
    removed, scores = np.zeros_like(graph.allowed), np.zeros(graph.allowed.shape)
    now = worse(patcher.score(removed[None])[patcher.metrics[0]])[0]
    for receiver in reversed(range(len(graph.receivers))):
        name, piece = graph.receivers[receiver], f"acdc/{receiver}"
        senders = np.flatnonzero(graph.allowed[:, receiver])[::-1]
        if piece in finished:
            scores[:, receiver], gone, (now,) = np.split(finished.get(piece), [len(scores), 2 * len(scores)])
            removed[:, receiver] = gone > 0
        elif name != "logits" and not _read(graph, removed, name):
            removed[senders, receiver] = True
        else:
            now = _decide(patcher, worse, threshold, removed, scores, receiver, senders, now)
            finished.put(piece, np.concatenate([scores[:, receiver], removed[:, receiver], [now]]))
        advance(len(senders))
    return scores, graph.allowed & ~removed


def _read(graph: Graph, removed: Bool[np.ndarray, "sender receiver"], receiver: str) -> bool:
    """Whether anything still reads one of the nodes that this place belongs to."""
    nodes = [graph.senders.index(node) for node in graph.readers[receiver]]
    return bool((graph.allowed & ~removed)[nodes].any())


def _decide(
    patcher: Patcher, worse: Callable, threshold: float, removed: np.ndarray, scores: np.ndarray, receiver: int,
    senders: np.ndarray, now: float,
) -> float:  # fmt: skip
    """ACDC's decisions on the edges into one receiver, written into `removed` and `scores`; the value after them."""
    at_once = AT_ONCE
    while len(senders):
        tried = senders[:at_once]
        sets = np.repeat(removed[None], len(tried), 0)
        for k in range(len(tried)):
            sets[k, tried[: k + 1], receiver] = True
        values = worse(patcher.score(sets)[patcher.metrics[0]])
        worsening = np.diff(np.concatenate([[now], values]))
        kept = np.flatnonzero(worsening >= threshold)
        n_gone = kept[0] if len(kept) else len(tried)
        decided = min(n_gone + 1, len(tried))
        scores[tried[:decided], receiver] = worsening[:decided]
        removed[tried[:n_gone], receiver] = True
        now = values[n_gone - 1] if n_gone else now
        at_once = AT_ONCE if len(kept) else 2 * at_once
        senders = senders[decided:]
    return float(now)
