"""The states of a run, in one word each: the run itself, `tinyimnet status`, reports and docs/watching.md use these.

A state follows from the run folder (Record.state). For a run whose job waits, or ended before the run started,
`tinyimnet status` adds the state of its Slurm job.
"""

NEW, RUNNING, FINISHED, STOPPED, FAILED, KILLED = "new", "running", "finished", "stopped", "failed", "killed"
PENDING, REQUEUED, UNKNOWN = "pending", "requeued", "unknown"
STOP_FILE = "a STOP file in the run folder"  # the request, as the run prints it

# The table in docs/watching.md. Other words are Slurm's own, such as `cancelled` for a job that never started the run.
MEANING = {
    NEW: "no attempt has started",
    RUNNING: "it trains: the holder of its lock is alive",
    FINISHED: "it reached its last step; the results are in the run folder",
    STOPPED: "it was asked to stop (Ctrl-C, a signal, a STOP file, the time limit), saved, and can be resumed",
    FAILED: "an error ended it; the message is in `logs/`",
    KILLED: "its processes are gone and could not save: SIGKILL, out of memory, a lost node, a second Ctrl-C",
    PENDING: "its Slurm job waits for its first attempt",
    REQUEUED: "its Slurm job waits for its next attempt",
    UNKNOWN: "it was submitted, but neither Slurm's queue nor its accounting knows the job",
}
_LOOKS = {
    "good": (RUNNING, FINISHED),
    "waiting": (NEW, STOPPED, PENDING, REQUEUED, "configuring", "completing", "suspended"),
}


def look(word: str) -> str:
    """How a state is coloured: good, waiting or bad."""
    return next((look for look, words in _LOOKS.items() if word in words), "bad")
