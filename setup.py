"Packaging: every fact comes from settings.ini, so that nbdev and pip cannot disagree."
from configparser import ConfigParser
from pathlib import Path
import shlex

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    python_requires=f">={cfg['min_python']}",
    # data/ holds small text and JSON files; it is installed inside the package as fuse_nb.data
    packages=["fuse_nb", "fuse_nb.data"],
    package_dir={"fuse_nb": cfg["lib_path"], "fuse_nb.data": "data"},
    package_data={"fuse_nb.data": ["*.txt", "*.json"]},
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={"dev": shlex.split(cfg["dev_requirements"])},
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    zip_safe=False,
)
