"""Entry point of `tunesmith` and `python -m tunesmith`."""


def main() -> None:
    from tunesmith.cli.main import run

    run()


if __name__ == "__main__":
    main()
