"""What goes wrong that can be said in one line."""

from collections.abc import Mapping


class UserError(Exception):
    """Bad input.

    Its text names the rule, the value that broke it and the next step, in one line.
    """


class DeviceLostError(UserError):
    """A GPU no longer answers this process; the text names the device and what it said last."""


def first_line(error: BaseException) -> str:
    """Return what a library says first, at most 200 letters; the rest is for its developers."""
    return str(error).strip().partition("\n")[0][:200]


def describe_differences(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """Return in words what differs between two records: "X is A there and B here";
    nothing if they are equal.

    Records that are saved (`there`) are compared with what is asked for (`here`).
    """
    names = [name for name in dict.fromkeys((*here, *there)) if there.get(name) != here.get(name)]
    return "; ".join(
        f"{name} is {there.get(name, 'none')} there and {here.get(name, 'none')} here"
        for name in names
    )
