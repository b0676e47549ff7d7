"""The site: every page has its place, every link stays in it, every command that pages show is one that there is."""

from __future__ import annotations

import re
import shlex
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from capo_ray import cli
from capo_ray.cli.compose import compose_train
from capo_ray.cli.critique import setting_of
from capo_ray.cli.eval_settings import compose_eval
from capo_ray.cli.overrides import all_overrides
from capo_ray.cli.sft import read_config
from capo_ray.cli.solve_settings import compose_solve
from scripts.pages import site
from tests.test_pages import LINK, anchors
from tests.view_run import make_run

ROOT = site.ROOT
COMMAND = re.compile(r"(?:\S.*\|\s*)?(?:\.venv/bin/)?capo-ray (.*)")


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_nav(value) if isinstance(value, list) else [value]


def test_every_page_stands_once_in_the_navigation() -> None:
    named = list(in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(named) == sorted([*map(str, site.pages()), "reference/python.md"])


def test_every_link_of_the_site_stays_in_it(tmp_path: Path) -> None:
    site.write_tree(tmp_path)
    pages, count = sorted(tmp_path.rglob("*.md")), 0
    assert len(pages) == len(site.pages()) + 1
    for page in pages:
        for link in LINK.findall(re.sub(site.CODE, "", page.read_text(encoding="utf-8"))):
            if "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file() and target.is_relative_to(tmp_path), f"{page}: {link}"
            assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{page}: {link}"
            count += 1
    assert count > 100
    assert "the_loop.py](the_loop.py)" in (tmp_path / "examples" / "README.md").read_text()
    assert (tmp_path / "examples" / "the_loop.py").is_file() and (tmp_path / "docs/images/view-group.png").is_file()


def test_what_makes_the_site_is_pinned_and_changes_nothing_that_runs_need() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", pin) for pin in pins) and any(pin.startswith("mkdocs==") for pin in pins)
    locked = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not locked & {pin.partition("==")[0].lower() for pin in pins}


def test_the_site_asks_nobody_for_fonts_or_scripts() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False and settings["strict"] is True
    assert not {"extra_javascript", "extra_css"} & set(settings)


def shown() -> list[tuple[str, str]]:
    """(page, words after `capo-ray`) of every command in a block of a page; … stands for whatever one adds."""
    found = []
    for page in site.pages():
        for block in re.findall(r"```(?:bash|console)?\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if match := COMMAND.match(line.strip()):
                    found.append((str(page), match[1]))
    return found


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the run and the files that commands name."""
    folder = tmp_path_factory.mktemp("somewhere")
    make_run(folder / "runs" / "latest", updates=1)
    for page in site.pages():
        for name, text in re.findall(r"```yaml\n\s*# (\S+\.yaml)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            (folder / name).write_text(text)
    return folder


def test_pages_show_commands() -> None:
    assert len(shown()) > 60 and {words.split()[0] for _, words in shown()} >= set(cli.COMMANDS) - {"export"}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "words"), shown())
def test_a_command_that_a_page_shows_is_one_that_there_is(
    page: str, words: str, somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are known, and its settings make a configuration; models, data and GPUs are not looked at."""
    monkeypatch.chdir(somewhere)
    name, *rest = [word for word in shlex.split(words, comments=True) if word != "…"]
    if name not in ("train", "sft"):  # what they go on with would have to be an evaluation, or to have checkpoints
        rest = [re.sub(r"^model=(runs|evals)/.*", "model=laptop", word) for word in rest if word[:7] != "resume="]
    rest = [re.sub(r"^resume=(?!auto).*", "resume=runs/latest", word) for word in rest]
    args = cli._parse(name, import_module(cli.COMMANDS[name][0]), rest)
    compose(name, args)


def compose(name: str, args: Namespace) -> None:
    if name == "train":
        compose_train(all_overrides(args))
    elif name in ("submit", "doctor"):
        compose_train(args.overrides)
    elif name == "eval":
        compose_eval(all_overrides(args))
    elif name == "solve":
        compose_solve(args.overrides)
    elif name == "sft":
        read_config(args.overrides, args.recipe, args.start)
    elif name == "critique":
        for more in ["", *args.also]:
            setting_of([*args.overrides, *more.split()], more)
