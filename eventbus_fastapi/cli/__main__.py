"""The command `eventbus` where it is called as `python -m eventbus_fastapi.cli`."""

from eventbus_fastapi.cli import main

if __name__ == "__main__":
    main()
