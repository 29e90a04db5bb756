"""The `dynpool` command, in this process."""

from typer.testing import CliRunner, Result

from dynpool import cli


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result
