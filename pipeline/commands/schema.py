"""`graft schema`."""

from pipeline.cli import errors_in_words


def schema() -> None:
    """Print the config's JSON Schema, for editors."""
    with errors_in_words():
        from pipeline.config_file import schema as json_schema

        print(json_schema())
