"""Errors that stop a run, reported in one line."""

from difflib import get_close_matches


class TrainError(Exception):
    """An expected way to fail: its message is printed alone, and the exit status is 1."""


class LocalError(TrainError):
    """An error of a single process, which has to report it itself."""


def one_line(error: BaseException) -> str:
    """Its message without line breaks."""
    return " ".join(str(error).split())


def did_you_mean(name: str, known: list[str]) -> str:
    """``"; nearest: ..."`` with the known name that looks most like this one, or all of them."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; nearest: {close[0]}" if close else f"; known: {', '.join(known)}"


def choice(argument: str, value: str, known: list[str]) -> None:
    """Raise unless `value` is one of `known`."""
    if value not in known:
        raise TrainError(f"{argument}: no such choice {value!r}{did_you_mean(value, known)}")
