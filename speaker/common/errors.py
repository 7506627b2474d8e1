"""What goes wrong that can be said in one line."""


class UserError(Exception):
    """Bad input. Its text names the rule, the value that broke it and the next step, in one line."""


class DeviceLostError(UserError):
    """A GPU does not answer this process any more; the text names the device and what it said last."""


def first_line(error: BaseException) -> str:
    """Return what a library says first; the rest of its message is for its developers."""
    return str(error).partition("\n")[0]
