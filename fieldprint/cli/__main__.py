"""`python -m fieldprint.cli`."""

from fieldprint.cli.app import main

if __name__ == "__main__":  # vLLM starts processes that import it
    main()
