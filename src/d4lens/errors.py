"""The errors a user can cause. Each message is one sentence: what is wrong, where, and what to do."""


def reason_of(error: OSError) -> str:
    """Say in lower case why the system refused.

    Parameters
    ----------
    error : OSError
        What was raised.

    Returns
    -------
    str
        Such as "no space left on device".
    """
    return (error.strerror or str(error) or type(error).__name__).lower()


class D4LensError(Exception):
    """A mistake the user can mend: the command line prints the message alone and exits non-zero."""


class PhysicsError(D4LensError, ValueError):
    """An argument outside its physical range; the message names the argument and its value."""


class WriteError(D4LensError, OSError):
    """A file that cannot be written, an OSError as well; `errno`, `strerror` and `filename` are set."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {(self.strerror or 'unknown reason').lower()}; mend that and run the same command again"
