"""``beacon-ota keys``: make, list, export and rotate the keys that releases are signed with."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import JsonOption
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.trust.keyring import KeyEntry, Keyring

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Make, list, export and rotate signing keys.",
)

PASSWORD_ENV = "BEACON_OTA_KEY_PASSWORD"

KeyringOption = Annotated[
    Path | None,
    typer.Option(
        "--keyring",
        envvar="BEACON_OTA_KEYRING",
        help="Folder of keys [default: ./keys if there, else the user's configuration].",
        show_default=False,
    ),
]
PasswordOption = Annotated[
    Path | None,
    typer.Option(help=f"File with the password in its first line; or set {PASSWORD_ENV}."),
]
ThresholdOption = Annotated[int, typer.Option(help="How many of the keys have to sign a release.")]


@app.command("new")
def make_key(
    name: Annotated[str, typer.Argument(help="What to call the key, e.g. release-2026.")],
    keyring: KeyringOption = None,
    password_file: PasswordOption = None,
    json: JsonOption = False,
) -> None:
    """Make a signing key, encrypted under a password."""
    ring = open_keyring(keyring)
    entry = ring.new(name, read_password(name, password_file, new=True))
    if json:
        output.print_json(_describe_key(ring, entry))
        return
    _print_key(ring, entry)
    others = [e for e in ring.entries() if e.name != name and not e.retired]
    say = output.console.print
    if not others:
        say(
            "\n[yellow]This is the only key.[/] Whoever loses it has to visit every beacon with a "
            "cable.\nMake a second one now, and keep it where nobody works every day:\n"
            "  beacon-ota keys new spare"
        )
    say("\nNext: [cyan]beacon-ota keys export -o keys.json[/] for image build --keys.")


@app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="What to call the key.")],
    public: Annotated[Path, typer.Option(help="Its public key, PEM.")],
    signer: Annotated[Path, typer.Option(help="The program that signs with it.")],
    keyring: KeyringOption = None,
    json: JsonOption = False,
) -> None:
    """Enter a key that a program holds (smart card, HSM, agent).

    The program reads the bytes to sign from stdin and writes 384 bytes, the RSA-PSS signature
    (SHA-256, salt 32), to stdout; BEACON_OTA_KEY and BEACON_OTA_KEYID tell it which key.
    """
    from beacon_ota.trust import PublicKey

    if not os.access(signer, os.X_OK) or not signer.is_file():
        raise UsageError("signer_missing", f"{signer} is not a program that can be run.")
    key = PublicKey.from_pem(text_files.read_text_file(public, 16384).encode(), name=str(public))
    ring = open_keyring(keyring)
    entry = ring.add(name, key, signer)
    if json:
        output.print_json(_describe_key(ring, entry))
    else:
        _print_key(ring, entry)


@app.command("list")
def list_keys(keyring: KeyringOption = None, json: JsonOption = False) -> None:
    """List the keys."""
    ring = open_keyring(keyring)
    rows = [_describe_key(ring, entry) for entry in ring.entries()]
    columns = ("name", "keyid", "state", "kind", "since", "replaced_by")
    output.print_rows(rows, columns, as_json=json, title=None if json else str(ring.folder))


@app.command("export")
def export_keys(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which keys [default: all that are not retired].")
    ] = None,
    threshold: ThresholdOption = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File [default: standard output].")
    ] = None,
    pem: Annotated[bool, typer.Option("--pem", help="PEM instead of keys.json.")] = False,
    keyring: KeyringOption = None,
) -> None:
    """Write keys.json: the keys that an app, or the orchestrator, trusts."""
    from beacon_ota.trust import files

    trusted = open_keyring(keyring).trusted(names, threshold)
    data = b"".join(k.pem() for k in trusted.keys.values()) if pem else trusted.to_json() + b"\n"
    if out is None:
        sys.stdout.buffer.write(data)
        return
    files.write_file(out, data)
    _print_exported(out, len(trusted.keys), threshold)


@app.command("rotate")
def rotate_key(
    old: Annotated[str, typer.Argument(help="The key to retire.")],
    new: Annotated[str, typer.Argument(help="What to call its successor.")],
    keyring: KeyringOption = None,
    password_file: PasswordOption = None,
    json: JsonOption = False,
) -> None:
    """Make a new key in place of an old one; beacons learn of it with the next release."""
    ring = open_keyring(keyring)
    ring.get(old)
    retired, made = ring.rotate(old, new, read_password(new, password_file, new=True))
    if json:
        output.print_json(
            {"retired": _describe_key(ring, retired), "new": _describe_key(ring, made)}
        )
        return
    _print_key(ring, made)
    output.print_markup(
        "\nBeacons still trust [cyan]{0}[/], and only that:\n"
        "  1. beacon-ota keys export -o keys.json      (without {0})\n"
        "  2. beacon-ota image build --keys keys.json  a release that brings the new set\n"
        "  3. beacon-ota release sign --key {0} --key {1}\n"
        "  4. sign with both until no beacon is older than that release, then with {1} alone,\n"
        "     and destroy {2}.key.pem with its backups.",
        old,
        new,
        ring.folder / old,
        soft_wrap=True,
    )


@app.command("password")
def change_password(
    name: Annotated[str, typer.Argument(help="The key.")],
    keyring: KeyringOption = None,
    password_file: PasswordOption = None,
    new_password_file: Annotated[
        Path | None, typer.Option(help="File with the new password in its first line.")
    ] = None,
) -> None:
    """Change the password of a key file; backups keep the old one."""
    ring = open_keyring(keyring)
    old = read_password(name, password_file)
    ring.signer(name, old)
    fresh = (
        _read_password_file(new_password_file)
        if new_password_file
        else _prompt_password(name, new=True)
    )
    ring.change_password(name, old, fresh)
    output.print_markup("The password of [cyan]{}[/] is changed.", name)


@app.command("fleet")
def make_fleet_key(
    out: Annotated[Path, typer.Argument(help="File to write, e.g. fleet.key.")],
) -> None:
    """Make a fleet key: 16 random bytes that decrypt releases on every beacon of a fleet."""
    from beacon_ota.trust import encrypt

    encrypt.new_fleet_key(out)
    output.print_markup(
        "Fleet key in [cyan]{}[/], readable by you only. It goes into beacons when they are\n"
        "provisioned, and into release sign --encrypt. The orchestrator never needs it.",
        out,
        soft_wrap=True,
    )


def open_keyring(folder: Path | None) -> "Keyring":
    """Return the keyring of the option, or the default one."""
    from beacon_ota.trust import keyring

    return keyring.Keyring(folder or keyring.default_folder())


def read_password(name: str, file: Path | None, *, new: bool = False) -> str:
    """Return a key's password: from the file, the environment, or a prompt.

    Raises:
        UsageError: ``key_password_missing``, there is no terminal to ask at.
    """
    if file:
        return _read_password_file(file)
    given = os.environ.get(PASSWORD_ENV)
    return given if given is not None else _prompt_password(name, new=new)


def _prompt_password(name: str, *, new: bool = False) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "key_password_missing",
            f"The key {name} needs a password, and there is no terminal to ask at.",
            expected=f"--password-file or {PASSWORD_ENV}",
        )
    words = f"Password for key {name}"
    if new:
        from beacon_ota.trust.keyring import MIN_PASSWORD

        words = f"New password for key {name} (at least {MIN_PASSWORD} characters)"
    return typer.prompt(words, hide_input=True, confirmation_prompt=new, err=True)


def _read_password_file(file: Path) -> str:
    return text_files.read_line(file, code="key_password_file", error=UsageError)


def _describe_key(ring: "Keyring", entry: "KeyEntry") -> dict[str, object]:
    return {
        "name": entry.name,
        "keyid": entry.keyid,
        "state": "retired" if entry.retired else "active",
        "kind": entry.kind,
        "held_by": entry.program or str(ring.folder / f"{entry.name}.key.pem"),
        "public": str(ring.folder / f"{entry.name}.pub.pem"),
        "created": entry.created,
        "since": entry.created[:10],
        "retired": entry.retired,
        "replaced_by": entry.replaced_by,
    }


def _print_key(ring: "Keyring", entry: "KeyEntry") -> None:
    row = _describe_key(ring, entry)

    def say(label: str, text: object) -> None:
        output.console.print(f"  {label:8} {text}", highlight=False, soft_wrap=True, markup=False)

    output.print_markup("Key [cyan]{}[/] is ready.", entry.name)
    say("keyid", row["keyid"])
    say("public", row["public"])
    say("private" if not entry.program else "signer", row["held_by"])
    if not entry.program:
        say("back up", f"{ring.folder} as a whole, and the password, in two different places")


def _print_exported(out: Path, count: int, threshold: int) -> None:
    keys = "1 key" if count == 1 else f"{count} keys"
    output.console.print(
        f"{out}: {keys}, {threshold} of them must sign a release.", highlight=False, markup=False
    )
