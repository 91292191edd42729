"""`interp task`: what a task asks, and whether the model can do it."""

from __future__ import annotations

from typing import Annotated

import typer

from interp.cli import options


@options.opens
def task(
    name: Annotated[str, typer.Argument(help="ioi, greater_than, agreement, ..., a .jsonl or .json of prompt pairs.")],
    model: options.ModelName = "bundled",
    corruption: options.Corruption = None,
    n: options.N = None,
    show: Annotated[int, typer.Option(help="Prompts to print.", min=0)] = 3,
    seed: options.Seed = 0,
    *,
    opening: options.Opening,
) -> None:
    """Print prompts of a task, what was left out of it, and how well the model does.

    Example: interp task greater_than --model bundled --show 5
    """
    import interp
    from interp.causal.sweeps import sweep

    loaded = opening.load(model)
    asked = interp.load_task(name, loaded, n=n, seed=seed, corruption=corruption)
    shortest, longest = int(asked.lengths.min()), asked.length
    lengths = f"{longest} tokens" if shortest == longest else f"{shortest} to {longest} tokens"
    labels = f"; positions {', '.join(asked.labels)}" if asked.labels else ""
    print(f"{asked.name}: {len(asked)} prompts of {lengths}{labels}")
    if asked.unaligned:
        print(f"{len(asked.unaligned)} pairs differ in length, the first is pair {asked.unaligned[0]}")
    if asked.note:
        print(asked.note)
    metrics = list(dict.fromkeys([asked.default_metric, "accuracy"]))
    scores = sweep(loaded, asked, [], metrics=metrics).baseline
    print(f'"{loaded.name}": ' + ", ".join(f"mean {metric} {scores[metric].mean():+.3f}" for metric in metrics))
    for row in asked.table(loaded).head(show).itertuples():
        print(f"  clean     {row.clean!r}")
        print(f"  corrupted {row.corrupted!r}")
        print(f"  answer    {row.answer!r} over {row.wrong!r}")
