"""Learning-rate schedules as pure functions of progress, their JSON, and the code to paste them elsewhere. Imports no
other room and, until it is asked for a scheduler, no torch: it can be used alone."""

from .codegen import code
from .schedule import Schedule, lambda_lr, load, set_lr
from .zoo import Length, ScheduleError

__all__ = ["Length", "Schedule", "ScheduleError", "code", "lambda_lr", "load", "set_lr"]
