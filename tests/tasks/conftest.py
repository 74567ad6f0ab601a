"""Property tests of this folder have no deadline: a shared machine may pause, and that is no defect."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
