"""What a task is: `TaskSpec` (YAML), its rows and splits, its text, its metrics.

Metrics are imported from `bmtpt.tasks.metrics`, because they need NumPy and the names below start without it.
"""

from bmtpt.tasks.check import check_file, describe
from bmtpt.tasks.rows import TaskData, load_data, own_task
from bmtpt.tasks.spec import TaskSpec, builtin_tasks, load_task, saved_task
from bmtpt.tasks.splits import SplitLimits, few_shot

__all__ = [
    "SplitLimits",
    "TaskData",
    "TaskSpec",
    "builtin_tasks",
    "check_file",
    "describe",
    "few_shot",
    "load_data",
    "load_task",
    "own_task",
    "saved_task",
]
