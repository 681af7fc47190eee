"""lm_eval's own command line, with ``redraft`` among its models: ``python -m redraft.harness --model redraft ...``."""

from redraft.harness import library

if __name__ == "__main__":
    library()
    from lm_eval.__main__ import cli_evaluate

    import redraft.harness.backend  # noqa: F401  # pyright: ignore[reportUnusedImport]  # the name is known from here on

    cli_evaluate()
