"""Run a udpm command under torchrun on the first GPU, which all its processes then share."""

import os

if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = "0"
    from udpm.cli import main

    main()
