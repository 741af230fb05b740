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
    """Run what callers ask for, each in a fork, until this process is ended."""
    import importlib

    from pipelines.cli import app

    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen()
        os.rename(f"{path}.new", path)
        while True:
            caller, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                code = _run(app, caller)
                caller.sendall(str(code).encode())
                os._exit(code)
            caller.close()


def _run(app, caller: socket.socket) -> int:
    """What the caller asks for, as if it were the caller; gives the exit code."""
    message, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    asked = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["dataengine", *asked["arguments"]]
    named = [os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:0] = [one for one in named if one not in sys.path]
    code = 1
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def call(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(caller, [json.dumps(asked).encode()], [0, 1, 2])
        return int(caller.recv(8) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(call(sys.argv[2], sys.argv[3:]))
