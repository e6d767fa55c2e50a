"""Errors that a user can mend. Each message says where, what, and the mend; `__main__` prints it without a trace."""


class PairmillError(Exception):
    """Base of every error that is the user's to mend, not ours."""

    exit_code = 1


class UsageError(PairmillError):
    """The command or recipe is wrong: nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or setting is unknown, misspelt or out of range."""


class FingerprintError(PairmillError):
    """A dataset holds results of another configuration or input; they are never mixed."""


class DatasetError(PairmillError):
    """A dataset folder is not what its ledger says, or not a dataset at all."""


class StepError(PairmillError):
    """A step ended with more quarantined shards than allowed."""
