"""The exception that a user is meant to read: what was wrong, its value, and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory, of the host or of a device."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


class UserError(ValueError):
    """Bad input or a state that the user can mend; commands print its message without a traceback."""

    exit_code = 2
    """Exit status of a command that ends with this error."""
    comes_to_all = False
    """Whether every process of a run raises it at the same point, so that they end together."""
