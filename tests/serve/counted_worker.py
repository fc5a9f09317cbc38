"""A worker whose model counts what reaches it: one byte a job, at the end of `$GLASSWORKS_RUNS`. Run as a worker is."""

import os
import sys

from glassworks.serve import worker


def main() -> int:
    log = os.open(os.environ["GLASSWORKS_RUNS"], os.O_WRONLY | os.O_APPEND)
    load = worker.load

    def counting(options):
        runner = load(options)
        begin = runner.begin

        def counted(order, says):
            os.write(log, b".")
            begin(order, says)

        runner.begin = counted
        return runner

    worker.load = counting
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
