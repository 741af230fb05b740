"""Commands of `dataengine` in forks of one process, so that many commands in a row import what they need once.

`python tests/forked.py serve SOCKET` waits for commands, `python tests/forked.py call SOCKET …` has one run with the
caller's arguments, folder, environment and standard streams, and ends with its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback

MODULES = (
    *("numpy", "pandas", "pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet", "PIL.Image", "pycocotools.mask"),
    *("dataengine.invariants", "pipelines.build", "pipelines.gallery", "pipelines.report", "pipelines.stats"),
)


def serve(path: str) -> None:
    """Run what callers ask for, each in a fork, until this process or the one that began it is ended."""
    import importlib

    from pipelines.cli import app

    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen()
        server.settimeout(5)
        os.rename(f"{path}.new", path)
        while os.getppid() == parent:
            try:
                caller, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                _run(app, caller)
            caller.close()


def _run(app, caller: socket.socket) -> None:
    """Run what the caller asks for, as if it were the caller, tell it the exit code, and end this process."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        message, streams, _, _ = socket.recv_fds(caller, 1 << 16, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        while part := caller.recv(1 << 16):
            message += part
        asked = json.loads(message)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["dataengine", *asked["arguments"]]
        named = [os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
        sys.path[:0] = [one for one in named if one not in sys.path]
        try:
            app()
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        caller.sendall(str(code).encode())
        os._exit(code)


def call(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        message = json.dumps(asked).encode()
        sent = socket.send_fds(caller, [message], [0, 1, 2])
        caller.sendall(message[sent:])
        caller.shutdown(socket.SHUT_WR)
        return int(caller.recv(8) or 1)


if __name__ == "__main__":
    del sys.path[0]  # the tests' folders are called like the packages
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(call(sys.argv[2], sys.argv[3:]))
