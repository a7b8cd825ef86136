"""Guards of the layout: one installed package, its links reach the folders at the top, no name is taken."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.source_tree import LINKED, ROOT, library_sources, parsed, project_files, where


def run_python(code: str, *, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    """Run code in a fresh interpreter with `path` before everything else and return what it printed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)))
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", LINKED)
def test_link_of_package_is_relative_and_leads_to_folder_at_top(folder: str) -> None:
    link = ROOT / "kvcompress" / folder
    assert link.is_symlink(), f"{link} is no link; run: ln -sfn ../{folder} kvcompress/{folder}"
    assert os.readlink(link) == f"../{folder}"
    assert link.resolve() == ROOT / folder
    assert link.is_dir()


@pytest.mark.parametrize("folder", LINKED)
def test_folder_at_top_is_no_regular_package(folder: str) -> None:
    # With an __init__.py it would win over an installed package of that name wherever the root is on
    # sys.path; transformers then finds this `kernels` instead of Hugging Face's and fails to import.
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("name", LINKED)
def test_installed_package_of_same_name_is_not_shadowed_from_root(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("CUDAProperties = 'theirs'\n")
    code = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}]  # the root first, as with `python -m pytest`
        from {name} import CUDAProperties
        print(CUDAProperties)
    """
    assert run_python(code, cwd=ROOT, path=(tmp_path,)) == "theirs"


def test_no_module_takes_a_name_of_the_standard_library() -> None:
    # Run as a script, a module's folder comes first on sys.path: a select.py or types.py beside it is then
    # imported by the standard library in place of its own.
    taken = [
        where(path)
        for path in project_files()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] in ("kvcompress", "tests", *LINKED)
        and path.stem in sys.stdlib_module_names - {"__main__"}
    ]
    assert not taken, f"rename: {taken}"


def test_import_is_light_and_needs_no_triton(tmp_path: Path) -> None:
    # transformers imports Triton on its own account, through torch._dynamo, where it finds it. So Triton is
    # hidden, which also keeps it out of sys.modules: whoever asks for it is seen, each time.
    code = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}]
        asked = []
        class NoTriton:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] != "triton":
                    return None
                frame = sys._getframe(1)
                while "importlib" in frame.f_globals["__name__"]:
                    frame = frame.f_back
                asked.append(frame.f_globals["__name__"])
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, NoTriton())
        import kvcompress
        heavy = {{"matplotlib", "kvcompress.analysis", "kvcompress.bench"}}
        ours = [name for name in asked if name.split(".")[0] == "kvcompress"]
        print(ours, sorted(sys.modules.keys() & heavy))
    """
    assert run_python(code, cwd=tmp_path) == "[] []"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive and, from it, the wheel; return their folder.

    A copy is built: setuptools adds to the tree, and puts what an earlier build left there into the wheel.
    """
    pytest.importorskip("build", reason="needs the build package (the dev extra has it)")
    copy = tmp_path_factory.mktemp("copy") / "project"
    for path in project_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for folder in LINKED:
        (copy / folder).mkdir(exist_ok=True)
        (copy / "kvcompress" / folder).symlink_to(f"../{folder}")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
@pytest.mark.xdist_group("build")
def test_wheel_holds_one_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    (information,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"kvcompress", information}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]
    assert wheel.read(f"{information}/top_level.txt").decode().split() == ["kvcompress"]


@pytest.mark.slow
@pytest.mark.xdist_group("build")
def test_wheel_holds_every_module_and_the_data(wheel: zipfile.ZipFile) -> None:
    wanted = {"kvcompress/py.typed"}
    for module, path in library_sources().items():
        name = module.replace(".", "/")
        wanted.add(f"{name}/__init__.py" if path.name == "__init__.py" else f"{name}.py")
    for pattern in (
        "kernels/README.md",
        "bench/results/*.json",
        "bench/testbed/*.json",
        "bench/testbed/*.jsonl",
        "bench/testbed/model/*",
    ):
        files = (path for path in ROOT.glob(pattern) if path in project_files())
        wanted.update(f"kvcompress/{path.relative_to(ROOT).as_posix()}" for path in files)
    missing = sorted(wanted - set(wheel.namelist()))
    assert not missing, f"not in the wheel (see [tool.setuptools.package-data]): {missing}"


@pytest.mark.slow
@pytest.mark.xdist_group("build")
def test_wheel_states_licence_python_and_dependencies(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "kvcompress"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert "torch>=2.9" in required, "no upper bound: it would hold back whoever installs this beside other packages"
    assert 'triton; platform_system == "Linux"' in required
    assert name.replace("METADATA", "licenses/LICENSE") in wheel.namelist()


@pytest.mark.slow
@pytest.mark.xdist_group("build")
def test_source_archive_holds_folders_in_place_of_links(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        links = [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
    assert not links, "a link in the archive breaks where links cannot be made"


@pytest.mark.slow
@pytest.mark.xdist_group("build")
def test_wheel_imports_from_elsewhere(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    filled = [
        folder for folder in LINKED if any(name.startswith(f"kvcompress.{folder}.") for name in library_sources())
    ]
    code = f"""
        import importlib, kvcompress
        for folder in {filled}:
            importlib.import_module("kvcompress." + folder)
        print(kvcompress.__file__)
    """
    done = run_python(code, cwd=tmp_path, path=(tmp_path / "site",))
    assert Path(done) == tmp_path / "site" / "kvcompress" / "__init__.py"


def test_console_script_leads_to_a_function() -> None:
    path = library_sources().get("kvcompress.cli")
    assert path is not None, "pyproject.toml names kvcompress.cli:main"
    names = {getattr(node, "name", None) for node in parsed(path).body}
    assert "main" in names, f"{where(path)} defines no main"
