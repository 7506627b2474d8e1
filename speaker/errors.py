"""The one exception that a user can mend."""


class UserError(Exception):
    """Bad input. Its text names the rule, the value that broke it and the next step, in one line."""
