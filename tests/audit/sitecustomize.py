"""A watch over every Python process that starts with this folder on its path: what none of them may do with a
stranger's bytes.

Python imports this file by its name before anything else. The watch is armed by SIGUSR1, once the process has imported
and made what it needs; from there on each event that could run or load code, start a process or write a file is one
line in `$GLASSWORKS_AUDIT.<pid>`. Nothing is forbidden: a test reads the lines.
"""

import os
import signal
import sys

_PATH = os.environ.get("GLASSWORKS_AUDIT")
_NAMES = ("pickle.", "marshal.", "compile", "exec", "import", "subprocess.", "os.system", "os.exec", "os.posix_spawn",
          "os.fork", "os.spawn", "ctypes.", "code.__new__", "shutil.", "os.rename", "os.link", "os.symlink", "os.chmod",
          "os.truncate", "os.mkdir", "os.rmdir", "socket.connect", "socket.bind", "sqlite3.", "winreg.")  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def _watch(path: str) -> None:
    log = os.open(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    armed = False

    def arm(number: int, frame: object) -> None:
        nonlocal armed
        armed = True
        os.write(log, b"armed\n")

    def hook(event: str, args: tuple) -> None:
        if not armed:
            return
        if event == "open":
            _, mode, flags = args
            if not (flags & _WRITES or set(str(mode or "")) & set("wax+")):
                return
        elif not event.startswith(_NAMES):
            return
        text = " ".join([event, *[repr(item)[:200] for item in args[:2]]]).replace("\n", " ")
        os.write(log, f"{text}\n".encode(errors="replace"))

    signal.signal(signal.SIGUSR1, arm)
    sys.addaudithook(hook)


if _PATH:
    _watch(_PATH)
