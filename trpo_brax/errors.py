"""The errors a user can cause: each carries one clear sentence, and the command line exits with status 2."""


class UserError(Exception):
    """Something the user can mend; `str(error)` is one sentence that says what and how."""

    exit_status = 2
    """Of the command line."""


class ConfigError(UserError, ValueError):
    """A configuration field holds a value that cannot work; the sentence names field, value and what is allowed."""


class TaskError(UserError):
    """An environment is unknown, unsupported, or breaks the contract a trainer needs."""


class RunFolderError(UserError):
    """A run folder cannot be created, read, resumed or is in use."""


class CheckpointError(UserError):
    """A checkpoint is missing, foreign or does not fit its configuration."""


class TrainingError(UserError):
    """A run could not go on, or what it came to could not be saved."""

    exit_status = 1
