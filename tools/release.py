"""Release one package: bump, changelog, build, check, and with ``--tag`` also commit and tag.

    release.py PACKAGE BUMP [--tag]

PACKAGE is a folder under ``packages/``. BUMP is what ``hatch version`` takes (major, minor, patch, 1.2.3), or
``none`` for the version as it stands, which is how the first release is made. All of it happens to a copy
first, of the files that git knows or would add; only with ``--tag``, and only where that went well, is the tree
changed. Where the commit or the tag is refused, by a hook for instance, the tree is put back. Nothing is ever
published: the last line printed is the command for that.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
HEADING = "## "  # of one version in a changelog


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, and end the release where it fails."""
    print("+", *command)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{command[0]} failed; nothing was tagged")
    return done.stdout.strip()


def git(*arguments: str | Path) -> str:
    return run("git", *arguments)


def copy_project(project: Path, copy: Path) -> None:
    """Copy a package without the files that git ignores: what lies about in the tree is not for users."""
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ".", cwd=project)
    for name in filter(None, listing.split("\0")):
        source, target = project / name, copy / name
        if source.exists():  # a file removed in the tree is listed until its removal is committed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def commit_and_tag(project: Path, part: str, new: str, tag: str, message: str) -> None:
    """Write to the tree, commit and tag; where that fails, put everything back and end the release."""
    before = git("rev-parse", "HEAD")
    folder = f"packages/{project.name}"
    try:
        bump(project, part)
        write_changelog(project, new)
        git("add", "--all", folder)
        git("commit", "--message", f"Release {message}")
        git("tag", "--annotate", tag, "--message", message)
    except BaseException as error:
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        # The tree was clean: whatever differs in the package's folder has been written just now.
        steps = (
            ["git", "reset", "--quiet", "--soft", before],
            ["git", "reset", "--quiet", before, "--", folder],
            ["git", "checkout", "--quiet", before, "--", folder],
            ["git", "clean", "--quiet", "--force", "-d", "--", folder],
        )
        for step in steps:
            done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                commands = "\n".join(f"  {' '.join(each)}" for each in steps)
                sys.exit(f"{done.stderr}\n{folder} is changed; to go back to {before[:12]}:\n{commands}")
        if isinstance(error, SystemExit):
            sys.exit("nothing is committed or tagged, and the tree is as it was")
        raise


def bump(project: Path, part: str) -> tuple[str, str]:
    """Set the next version. Returns the old one and the new one."""
    old = run("hatch", "version", cwd=project)
    if part != "none":
        run("hatch", "version", part, cwd=project)
    return old, run("hatch", "version", cwd=project)


def write_changelog(project: Path, version: str) -> str:
    """Turn the fragments into a section of the changelog, and return that section."""
    fragments = [path for path in (project / "changes").glob("*.md") if not path.name.startswith(".")]
    if not fragments:
        sys.exit(f"packages/{project.name}/changes holds no fragment: there is nothing to release")
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    run("towncrier", "build", "--yes", "--version", version, "--date", today, cwd=project)
    (project / "changes").mkdir(exist_ok=True)
    (project / "changes" / ".gitkeep").touch()  # towncrier removes what is empty, git forgets it
    sections = (project / "CHANGELOG.md").read_text("utf-8").split(f"\n{HEADING}")
    return HEADING + sections[1].strip()


def check_api(folder: str, module: str, old: str, tags: list[str]) -> None:
    """Print what breaks against the last release. While versions begin with 0, a minor may."""
    last = f"{folder}/v{old}"
    if last not in tags:
        return
    # A relative search path: griffe compares a tree with itself where the path is absolute.
    command = ["griffe", "check", "-s", f"packages/{folder}/src", module, "--against", last]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print("+", *command)
    print(done.stdout + done.stderr if done.returncode else "no public name was removed or changed")


def build(project: Path, target: Path) -> list[Path]:
    """Make the wheel and the source archive, and let twine read their metadata."""
    run("hatch", "build", target, cwd=project)
    files = sorted([*target.glob("*.whl"), *target.glob("*.tar.gz")])
    run("twine", "check", "--strict", *files)
    return files


def try_wheel(wheel: Path, module: str, version: str, siblings: Path) -> None:
    """Install the wheel in a new environment, and ask it for its version."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "bin", "python")
        constraints = Path(directory, "siblings.txt")
        constraints.write_text(
            "".join(
                f"{other.name.partition('-')[0].replace('_', '-')} @ {other.as_uri()}\n"
                for folder in FOLDERS
                for other in (siblings / folder).glob("*.whl")
                if other.name.partition("-")[0] != module
            ),
            "utf-8",
        )
        run(python, "-m", "pip", "install", "-q", "-c", constraints, wheel)
        found = run(python, "-I", "-c", f"import {module}; print({module}.__version__)")
    if found != version:
        sys.exit(f"the wheel says that it is {found}, not {version}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="nox -s release --"
    )
    parser.add_argument("package", choices=FOLDERS)
    parser.add_argument("bump", help="major, minor, patch, a version, or none")
    parser.add_argument("--tag", action="store_true", help="write to the tree, commit and tag")
    parser.add_argument("--siblings", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: str = options.package

    tags = git("tag", "--list", f"{folder}/v*").splitlines()
    if options.tag and git("status", "--porcelain"):
        sys.exit("the tree is not clean: commit or put aside what is in it")
    project = ROOT / "packages" / folder
    name: str = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    module = name.replace("-", "_")

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, folder)
        copy_project(project, copy)
        old, new = bump(copy, options.bump)
        tag = f"{folder}/v{new}"
        if tag in tags:
            sys.exit(f"{tag} is released already")
        check_api(folder, module, old, tags)
        section = write_changelog(copy, new)
        files = build(copy, Path(scratch, "dist"))
        try_wheel(next(file for file in files if file.suffix == ".whl"), module, new, options.siblings)

        print(f"\n{section}\n")
        print(f"{name} {old} -> {new}:", ", ".join(file.name for file in files))
        if not options.tag:
            print(
                "This was a rehearsal: the tree is as it was. With --tag it is written, committed and tagged."
            )
            return
        commit_and_tag(project, options.bump, new, tag, f"{name} {new}")
        shutil.copytree(Path(scratch, "dist"), ROOT / "dist" / folder, dirs_exist_ok=True)

    print("To publish:")
    print(f"  git push origin HEAD {tag} && twine upload", *(f"dist/{folder}/{file.name}" for file in files))


if __name__ == "__main__":
    main()
