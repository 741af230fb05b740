"""What all commands share: options, and how errors end them. Nothing heavy is imported here.

Annotations of the modules with commands are not postponed: typer would evaluate them as text at every start.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Out = Annotated[str, typer.Option("--out", help="Output folder, a path or URI (s3://…).")]
Workers = Annotated[int, typer.Option(min=1, metavar="N", help="Worker processes.")]
Dataset = Annotated[str, typer.Argument(metavar="DIR", help="A dataset folder, a path or URI.")]


def group(text: str) -> typer.Typer:
    """A command that has commands of its own."""
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)  # plain help comes in half the time


def for_terminal(text: str) -> str:
    """Text that is not ours, line by line as it is; what would steer a terminal instead of being seen is named."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else ascii(c)[1:-1] for c in text)


@contextmanager
def errors(progress: Any = None) -> Iterator[None]:
    """Errors that a user can mend become one line and exit code 1; defects keep their traceback."""
    from dataengine.errors import UserError

    def stop(message: str, code: int) -> typer.Exit:
        if progress is not None:
            progress.fail(message, interrupted=code == 130)
        typer.secho(for_terminal(message), fg="red" if code == 1 else None, err=True)
        return typer.Exit(code)

    def terminate(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        raise stop("interrupted; what is committed stays, --resume goes on", 130) from None
    except (UserError, OSError) as error:
        raise stop(f"error: {error}", 1) from None
    except Exception as error:
        if progress is not None:
            progress.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
