"""The errors a user can cause. Each message is one sentence: what is wrong, where, and what to do."""


class D4LensError(Exception):
    """A mistake the user can mend: the command line prints the message alone and exits non-zero."""


class PhysicsError(D4LensError, ValueError):
    """An argument outside its physical range; the message names the argument and its value."""


class WriteError(D4LensError, OSError):
    """A file that cannot be written, an OSError as well; `errno`, `strerror` and `filename` are set."""

    def __str__(self) -> str:
        reason = (self.strerror or "unknown reason").lower()
        return f"{self.filename} cannot be written: {reason}; mend that and run the same command again"
