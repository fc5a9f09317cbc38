"""A worker whose model counts what reaches it: one byte a run, at the end of `$GLASSWORKS_RUNS`. Run as a worker is."""

import os
import sys

from glassworks.serve import worker


def main() -> int:
    log = os.open(os.environ["GLASSWORKS_RUNS"], os.O_WRONLY | os.O_APPEND)
    load = worker.load_host

    def counting(*args, **kwargs):
        host = load(*args, **kwargs)
        handle = host.handle

        def counted(method, path, body=None):
            if method == "POST" and path.startswith("/run"):
                os.write(log, b".")
            return handle(method, path, body)

        host.handle = counted
        return host

    worker.load_host = counting
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
