"""The command `python -m odeopt`."""

import sys

if __name__ == "__main__":
    try:
        from odeopt.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("python -m odeopt needs the package typer: run `pip install 'odeopt[cli]'`.")
    app(prog_name="python -m odeopt")
