"""What a command says, as its tests read it."""


def one_line(capsys) -> str:
    """What stands on standard error, which is to be one line."""
    error = capsys.readouterr().err.strip()
    assert "\n" not in error, error
    return error
