"""The exception that a user is meant to read: what was wrong, its value, and what to do."""


class UserError(ValueError):
    """Bad input or a state that the user can mend; commands print its message without a traceback."""

    exit_code = 2
    """Exit status of a command that ends with this error."""
    comes_to_all = False
    """Whether every process of a run raises it at the same point, so that they end together."""
