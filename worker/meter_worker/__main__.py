"""`python -m meter_worker` is `meter-lib`."""

from meter_worker.cli import main

if __name__ == "__main__":
    main()
