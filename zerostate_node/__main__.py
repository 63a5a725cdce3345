"""`python -m zerostate_node`: the same as `zerostate-node`."""

from zerostate_node.cli import main

if __name__ == "__main__":
    main()
