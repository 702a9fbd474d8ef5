"""`meter-lib`, which is `python -m meter_worker` as well."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process. Ctrl-C ends it without a traceback from here on."""
    try:
        # It takes a while to load, in which nobody else would catch an interrupt.
        from meter_worker.cli import main as program  # noqa: PLC0415  # see above

        program()
    except KeyboardInterrupt:
        sys.exit("meter-lib: interrupted")


if __name__ == "__main__":
    main()
