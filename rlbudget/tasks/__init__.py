"""Tasks: questions, targets and the scorers that belong to them."""

from rlbudget.tasks.files import Columns
from rlbudget.tasks.load import load_task
from rlbudget.tasks.scorers import exact_match_math, exact_match_text
from rlbudget.tasks.task import Question, Task

__all__ = ["Columns", "Question", "Task", "exact_match_math", "exact_match_text", "load_task"]
