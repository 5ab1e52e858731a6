"""Option groups: a group in a signature becomes its options, at its place in the help."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
import typer.testing

from beacon_ota.cli._support.options import JsonOption, OptionGroup, Server, expand_groups
from beacon_ota.errors import UsageError


@dataclass(frozen=True)
class Size(OptionGroup):
    width: Annotated[int, typer.Option(help="Columns.")] = 80
    height: Annotated[int | None, typer.Option("--rows", help="Rows.")] = None

    @property
    def text(self) -> str:
        return f"{self.width}x{self.height}"


def invoke(command, *args: str):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(expand_groups(command))
    return typer.testing.CliRunner().invoke(app, list(args))


def draw_frame(
    title: Annotated[str, typer.Argument(help="Above it.")],
    *,
    size: Size,
    json: JsonOption = False,
) -> None:
    """Draw a frame."""
    typer.echo(f"{title} {size.text} {json}")


def test_options_of_a_group_are_given_to_the_command_as_the_group():
    assert invoke(draw_frame, "a").output == "a 80xNone False\n"
    assert invoke(draw_frame, "a", "--rows", "3", "--width=5", "--json").output == "a 5x3 True\n"
    assert invoke(draw_frame, "a", "--height", "3").exit_code == 2


def test_the_help_shows_them_at_the_place_of_the_group():
    shown = invoke(draw_frame, "--help").output
    assert "Draw a frame." in shown
    places = [shown.index(text) for text in ("title", "--width", "--rows", "--json")]
    assert places == sorted(places)


def test_two_options_of_one_name_are_refused():
    def draw_twice(*, size: Size, width: int = 3) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="width"):
        expand_groups(draw_twice)


def test_a_server_is_opened_when_it_is_needed(monkeypatch, tmp_path):
    """Commands that work on a data folder read no configuration, not even a broken one."""
    (tmp_path / "config.toml").write_text("[[")
    monkeypatch.setenv("BEACON_OTA_CONFIG", str(tmp_path))
    server = Server()
    with pytest.raises(UsageError) as caught:
        server.client.list_sites()
    assert caught.value.code == "config_file"
    named = Server("http://127.0.0.1:9/", "secret")
    assert named.client is named.client
    assert (named.client.url, named.client.token) == ("http://127.0.0.1:9", "secret")
