"""What deploy/try_images.py looks for in images."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "try_images.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("try_images", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image(script, tmp_path):
    settings = {"User": "10001:10001", "WorkingDir": "/", "Env": ["A=1"]}
    return script.Image("x", tmp_path, settings, ["base", "program"])


@pytest.mark.parametrize(
    "name", ["cc", "gcc-12", "x86_64-linux-gnu-ld.bfd", "g++", "pip3.11", "uv"]
)
def test_a_compiler_or_installer_is_found(name, script, image):
    program = image.root / "bin" / name
    program.parent.mkdir()
    program.write_text("")
    assert script.size(image)["bytes"] == 0  # not one to start
    program.chmod(0o755)
    with pytest.raises(SystemExit, match=f"bin/{name.replace('+', '.')}"):
        script.size(image)


@pytest.mark.parametrize(
    "name", ["ld-linux-x86-64.so.2", "ldconfig", "uvicorn", "accelerate", "cat"]
)
def test_other_programs_are_let_be(name, script, image):
    (image.root / name).write_text("four")
    (image.root / name).chmod(0o755)
    assert script.size(image) == {"image": "x", "bytes": 4, "layers": 2}


def test_layers_are_shared_from_the_base_on(script, image):
    other = script.Image("y", image.root, image.settings, ["base", "other", "program"])
    assert script.shared_layers(image, other) == 1
    assert script.shared_layers(image, image) == 2
