"""What a run folder says of its task."""

from __future__ import annotations

import math

from trpo_brax.environments import Task
from trpo_brax.runs.files import write_json
from trpo_brax.runs.folder import RunFolder


def write_task(folder: RunFolder, task: Task) -> None:
    """Save sizes and bounds, so that a policy can be opened with no environment at hand."""
    bounds = {
        "action_low": [bound if math.isfinite(bound) else None for bound in task.action_low],
        "action_high": [bound if math.isfinite(bound) else None for bound in task.action_high],
    }
    write_json(folder.task_file, {"name": task.name, "observation_size": task.observation_size, **bounds})
