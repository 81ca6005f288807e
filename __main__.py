"""`python -m depthkit`."""

from .cli import main

if __name__ == "__main__":
    main()
