"""``nora`` and ``python -m nora``, which is also what torchrun and ``accelerate launch`` start."""

import os
import sys

from nora.errors import not_installed

try:
    from nora.cli import main
except ModuleNotFoundError as error:
    print(not_installed(error), file=sys.stderr)
    sys.exit(2)


def leave(code: int) -> None:
    """Ends the process with ``code``. One of several that trained together does not wait for its C++ threads: now and
    then the interpreter's own end cuts them off, and a run whose record is published ends by SIGABRT."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
