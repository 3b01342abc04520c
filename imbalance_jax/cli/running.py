"""Running a command: signals, exceptions and exit codes."""

import atexit
import contextlib
import functools
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from absl import app, logging

from imbalance_jax.cli import command_line
from imbalance_jax.cli.exits import FAILED, PREEMPTED, exit_with_error
from imbalance_jax.cli.help_text import Subcommand, choose_subcommand, print_help
from imbalance_jax.runs import children, process_limits, storage


def run_command(
    main: Callable[..., int],
    *,
    names: bool = False,
    computes: bool = False,
    subcommands: Mapping[str, Subcommand] | None = None,
) -> NoReturn:
    """Reads the flags that were defined, calls `main` and exits with what it returns.

    Args:
      main: the command.
      names: whether it takes the list of arguments that are no flags.
      computes: whether it needs the threads and the memory of jax, which are tried first.
      subcommands: if there are any, `main` takes the name of one.
    """

    def checked(argv: list[str]) -> int:
        # Libraries would report each file that they open.
        logging.set_verbosity(logging.WARNING)
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as jobs in the background have it
            signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)
        children.end_with_parent()
        if len(argv) > 1 and not names and not subcommands:
            exit_with_error(f"{argv[1]!r} is not a flag. Write --name=value.")
        with _explain_errors():
            if computes:
                process_limits.check_process_limits()
            if subcommands:
                return main(choose_subcommand(argv[1:], subcommands))
            return main(argv[1:]) if names else main()

    def parse(argv: list[str]) -> list[str]:
        with _explain_errors():
            print_help(argv, subcommands or {})
            return command_line.parse_flags(argv)

    atexit.register(_skip_teardown_after_interrupt)  # the first, so that it is called last
    _escape_unencodable_text()
    app.run(checked, flags_parser=parse)


@contextlib.contextmanager
def _explain_errors() -> Iterator[None]:
    """Ends the process with a line on each error that its user, or the system, can mend."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # An interrupt that meets an import or a callback in C++ comes back as another error.
        if _is_interrupted or isinstance(error.__cause__ or error, KeyboardInterrupt):
            _exit_interrupted()
        _explain_error(error)


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    """Handles SIGTERM as Ctrl-C, once no import is under way.

    A module in C++ prints the interrupt of an import within its own, or makes another error of it;
    and Python ends with the signal's code once an interrupt has met the making of a dataclass.
    """
    global _is_interrupted
    if _is_importing(frame):
        _send_again()
        return
    _is_interrupted = True
    raise KeyboardInterrupt


def _is_importing(frame: types.FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


_is_interrupted = False


def _skip_teardown_after_interrupt() -> None:
    """Ends the process before its modules are taken down, if an interrupt ends it.

    Where the interrupt met a compilation, XLA (jax 0.10) crashes as they are.
    """
    if _is_exiting_interrupted:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(PREEMPTED)


_is_exiting_interrupted = False


def _exit_interrupted() -> NoReturn:
    global _is_exiting_interrupted
    _is_exiting_interrupted = True
    for number in (signal.SIGTERM, signal.SIGINT):  # which may be sent again meanwhile
        signal.signal(number, signal.SIG_IGN)
    print("Interrupted. Start again to go on.", file=sys.stderr)
    sys.exit(PREEMPTED)


def _explain_error(error: BaseException) -> NoReturn:
    """Ends the process with a line on an error, or raises it where there is none."""
    try:
        raise error
    except UnicodeError:
        raise  # a ValueError that is no mistake of the user and names no file
    except ValueError as error:
        exit_with_error(str(error))
    except BrokenPipeError:
        # The reader of the output has gone, as `head` does. The rest of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        exit_with_error(storage.describe_os_error(error))
    except MemoryError as error:
        exit_with_error(f"This machine is out of memory: {error or 'it does not say for what'}.")
    except RuntimeError as error:
        system = storage.find_os_error(error)
        if system is None and str(error).startswith("RESOURCE_EXHAUSTED:"):  # as XLA says it
            exit_with_error(
                f"Out of memory: {str(error).splitlines()[0]} Use a smaller batch "
                "(config.batch_size), config.model.remat=full, or more devices; docs/scaling.md "
                "says what takes how much."
            )
        if system is None:
            raise
        exit_with_error(storage.describe_os_error(system))


def _interrupt_again(report: Callable[..., None], unraisable: "sys.UnraisableHookArgs") -> None:
    """Interrupts the main thread again if a KeyboardInterrupt was lost.

    Callbacks of the garbage collector lose exceptions, and jax has such a callback.

    Args:
      report: takes all other exceptions that cannot be raised.
      unraisable: the exception that was not raised.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _send_again()  # after a moment, or it would interrupt this function
    else:
        report(unraisable)


def _send_again() -> None:
    """Sends an interrupt after a moment. Jobs in the background of a shell ignore Ctrl-C."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _escape_unencodable_text() -> None:
    """Escapes characters that the encoding of the output does not have.

    A job without a locale prints ASCII, and a file name may have bytes that are no text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
