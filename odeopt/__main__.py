"""The command `python -m odeopt`."""

from odeopt.cli import app

if __name__ == "__main__":
    app(prog_name="python -m odeopt")
