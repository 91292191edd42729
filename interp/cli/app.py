"""`interp app`: the Streamlit app on a workspace, for this machine only unless another host is asked for."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

import interp
from interp.errors import InputError, MissingFile


def app(
    workspace: Annotated[Path, typer.Option(help="The folder with runs/, stores/ and saes/.")] = Path("workspace"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the app listens.")] = 8501,
    host: Annotated[str, typer.Option(help="127.0.0.1: only this machine can see the app.")] = "127.0.0.1",
    headless: Annotated[bool, typer.Option("--headless", help="Do not open a browser.")] = False,
) -> None:
    """Open the app on a workspace.

    Example: interp app --workspace ./workspace --port 8501
    """
    if not workspace.is_dir():
        raise MissingFile(f"no workspace at {workspace}. `interp demo --workspace {workspace}` makes one.")
    check_free(host, port)
    root = Path(interp.__file__).resolve().parent.parent
    print(f"http://{host}:{port}  (workspace {workspace.resolve()}; Ctrl-C stops it)", flush=True)
    search = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    os.execve(
        sys.executable,
        command(root / "app" / "main.py", workspace, host, port, headless),
        os.environ | {"PYTHONPATH": search},
    )


def check_free(host: str, port: int) -> None:
    """InputError if `host` and `port` cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"cannot listen on {host}:{port} ({error.strerror}): try --port {port + 1}.") from None


def command(script: Path, workspace: Path, host: str, port: int, headless: bool) -> list[str]:
    settings = {
        "server.address": host,
        "server.port": port,
        "server.headless": str(headless).lower(),
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "runner.postScriptGC": "false",  # a whole collection holds a click's last messages back; python does its own
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",  # and with it an advertisement inside the page
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    streamlit = [sys.executable, "-m", "streamlit", "run", str(script), *options]
    return [*streamlit, "--", "--workspace", str(workspace.resolve())]
