"""A udpm command as one of several processes that share a GPU: under torchrun each would take one of its own."""

import os

if __name__ == "__main__":
    os.environ["LOCAL_RANK"] = "0"
    from udpm.cli import main

    main()
