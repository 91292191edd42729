"""Texts for tests, and windows cut from them by slow loops."""

import json
import random

WORDS = "Mary John went to the shop and gave a bag to Mary keys cabinet old small dog ran along the road\n".split(" ")


def some_texts(n, seed=0, longest=60):
    rng = random.Random(seed)
    return [f"{k} " + " ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for k in range(n)]


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text, "id": n}) + "\n" for n, text in enumerate(texts)))
    return path


def rows_of(batches):
    """[(tokens, documents)] without the padding."""
    return [
        (tokens[:n].tolist(), document[:n].tolist())
        for batch in batches
        for tokens, n, document in zip(batch.tokens, batch.lengths, batch.document, strict=True)
    ]


def slow_packed(ids_of_documents, context, bos):
    """One token after the other: [(tokens, documents)] of each window."""
    start = [] if bos is None else [bos]
    flow = []
    for number, ids in enumerate(ids_of_documents):
        flow += [(token, number) for token in ((start if flow else []) + ids)]
    body = context - len(start)
    rows = []
    while len(flow) >= body:
        row, flow = flow[:body], flow[body:]
        rows.append(([*start, *(t for t, _ in row)], [*([row[0][1]] * len(start)), *(n for _, n in row)]))
    return rows


def slow_document(ids_of_documents, context, bos):
    start = [] if bos is None else [bos]
    rows = []
    for number, ids in enumerate(ids_of_documents):
        while ids:
            row = start + ids[: context - len(start)]
            ids = ids[context - len(start) :]
            rows.append((row, [number] * len(row)))
    return rows
