"""`python -m autodeploy` is the command `autodeploy`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
