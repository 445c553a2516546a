"""`python -m pipelines.cli`, for clusters where nothing is installed."""

from pipelines.cli.app import main

if __name__ == "__main__":
    main()
