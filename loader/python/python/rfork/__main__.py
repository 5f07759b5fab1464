"""``python -m rfork``: the command ``rfork``, without planner and demo."""

import signal
import sys

from ._rfork import command

if __name__ == "__main__":
    # The command has its own way to end; Python would raise KeyboardInterrupt after it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(command(["rfork", *sys.argv[1:]]))
