"""A module beside the main one."""


def greet():
    """Says where it is."""
    return f"hello from {__name__}"
