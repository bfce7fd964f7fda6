"""`python -m eqnet_core.training`: the training commands."""

from eqnet_core.training.commands import main

if __name__ == "__main__":
    main()
