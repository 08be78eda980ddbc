"""Errors a user can act on. Each prints as one line — what, where, what to do — and has a stable exit code."""

from __future__ import annotations


class UnmaskError(Exception):
    """Base of every error the command line reports in one line instead of a traceback."""

    exit_code = 1


class ConfigError(UnmaskError):
    """A recipe, an override or an argument is wrong."""

    exit_code = 2


class DataError(UnmaskError):
    """The images cannot be found, read or trusted."""

    exit_code = 3


class StorageError(DataError):
    """A disk, an object store or a web server fails, which does not make a bad image of the one that was asked for."""


class CheckpointError(UnmaskError):
    """A checkpoint is damaged, of another shape, or could not be written."""

    exit_code = 4


class TrainingError(UnmaskError):
    """Training cannot go on: the loss or the gradients stay non-finite."""

    exit_code = 5


class EngineError(UnmaskError):
    """The engine or device asked for is not there."""

    exit_code = 6


class ProcessError(UnmaskError):
    """Of several processes one was lost: it ended, or did not answer in time."""

    exit_code = 7
