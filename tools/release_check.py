"""Build the distributions of the core and of every plugin, and try their wheels in a new environment.

``make release-check`` runs it. Every command is printed; the first that fails ends it with its exit code. What was
built is left in the output folder, and is what ``.github/workflows/release.yml`` publishes.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = [ROOT, *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml"))]


def run(*command: str | Path, cwd: Path = ROOT, shown: bool = True) -> str:
    """Run one command, print it and its output, and return that.

    Args:
        command: The program and its arguments.
        cwd: The folder to run it in.
        shown: Whether its output is printed when it succeeds.

    Raises:
        SystemExit: It failed. Its output is printed.
    """
    print("==>", *command, flush=True)
    # a package of the repository must not stand in for an installed one
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if shown or done.returncode:
        print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def packaged(project: Path) -> set[str]:
    """The files under version control that a project's wheel has to hold, as the wheel names them.

    Args:
        project: The folder of its pyproject.toml.
    """
    source = project / "src" if (project / "src").is_dir() else project
    listed = subprocess.run(
        ["git", "ls-files", "-z", "."], cwd=source, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    return {name for name in listed if name.startswith("tokenprune") and "/" in name and (source / name).is_file()}


def differences(wheel: Path, files: set[str]) -> list[str]:
    """What a wheel lacks of a project's files, or holds beside them; one line each.

    Args:
        wheel: The wheel.
        files: What :func:`packaged` returns.
    """
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    lacks = [f"{wheel.name} lacks {name}" for name in sorted(files - held)]
    return lacks + [f"{wheel.name} holds {name}, which is not under version control" for name in sorted(held - files)]


def build(project: Path, version: str, folder: Path) -> Path:
    """Build sdist and wheel of a project.

    Args:
        project: The folder of its pyproject.toml.
        version: The version that both must have.
        folder: Where they are written.

    Returns:
        The wheel.

    Raises:
        SystemExit: The build failed, has another version, or other files than the project.
    """
    name = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    # the wheel is built from the sdist, in a folder of its own: what an earlier build left here is not in it
    run(sys.executable, "-m", "build", "--outdir", folder, project, shown=False)
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    for file in (folder / f"{stem}.tar.gz", wheel):
        if not file.is_file():
            raise SystemExit(f"{name} was built with another version than {version}: {file.name} is not there")
    if wrong := differences(wheel, packaged(project)):
        raise SystemExit("\n".join(wrong))
    print(f"{wheel.name}: {wheel.stat().st_size / 1000:,.0f} kB")
    return wheel


def try_wheels(wheels: list[Path], python: Path, folder: Path) -> None:
    """Install the core's wheel alone and try it, and then those of the plugins.

    Args:
        wheels: The wheels, the core's first.
        python: The Python of a new environment.
        folder: An empty folder to run in, so that no file of the repository is found by chance.

    Raises:
        SystemExit: A command failed.
    """
    command = python.with_name("tokenprune")
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "-qq", "-c", ROOT / "requirements" / "torch.txt")
    smoke = (python, "-I", ROOT / "tools" / "smoke.py", ROOT / "docs" / "snippets" / "tiny.py")
    run(*install, wheels[0])
    run(command, "--version", cwd=folder)
    run(command, "doctor", cwd=folder)
    run(*smoke, cwd=folder)
    run(*install, *wheels)
    run(*pip, "check", cwd=folder)
    run(command, "doctor", cwd=folder)
    run(*smoke, *(wheel.name.split("-")[0].replace("_", "-") for wheel in wheels[1:]), cwd=folder)


def main() -> None:
    """Check everything that is published."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to build; earlier distributions go")
    parser.add_argument("--tag", help="the tag of the release: refused if it is not 'v' and the version")
    given = parser.parse_args()
    version = runpy.run_path(str(ROOT / "tokenprune" / "version.py"))["__version__"]
    if given.tag not in (None, f"v{version}"):
        raise SystemExit(f"the tag is {given.tag} and the version {version}: tag v{version}, or change the version")
    out = given.out.resolve()
    for old in [*out.glob("*.whl"), *out.glob("*.tar.gz")]:
        old.unlink()
    wheels = [build(project, version, out) for project in PROJECTS]
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(out.iterdir()))
    with tempfile.TemporaryDirectory() as folder:
        environment, work = Path(folder, "venv"), Path(folder, "work")
        venv.create(environment, with_pip=True)
        work.mkdir()
        try_wheels(wheels, environment / "bin" / "python", work)
    print(f"==> {len(wheels)} distributions of {version} are ready in {out}")


if __name__ == "__main__":
    main()
