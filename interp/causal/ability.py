"""Can the model do the task at all? Of a model that cannot, no place carries the answer."""

from __future__ import annotations

from interp.causal import sweeps
from interp.data.tasks import Task
from interp.decoder.model import Model
from interp.errors import InputError


def check_ability(model: Model, task: Task) -> None:
    """InputError where the mean difference of right and wrong answers (`logit_diff`; of sets of answers `prob_diff`) on
    the clean prompts is 0 or less. A task without wrong answers is not judged."""
    metric = task.default_metric
    if not metric.endswith("_diff"):
        return
    scores = sweeps.sweep(model, task, [], metrics=[metric]).baseline[metric]
    if not scores.mean() > 0:
        raise InputError(
            f'"{model.name}" cannot do the task "{task.name}": mean {metric} {scores.mean():+.3f} on {len(task)} clean '
            "prompts, where above 0 is right; pass --force (force=True) to go on."
        )
