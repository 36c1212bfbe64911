"""How many processors this process may use."""

import os


def processors() -> int:
    """Those that it is allowed, where the system says so: of a container or a job, not of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
