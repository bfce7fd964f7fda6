"""`eqnet keys`: make, list and revoke API keys."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from service.security.key_file import KeyFile, KeyFileError, default_key_file
from service.security.keys import ApiKey, KeyEntryError, Scope


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(title="commands", required=True)
    add = commands.add_parser("add", help="make a key and print it, once")
    add.add_argument("name", help="who it is for; shows in logs")
    add.add_argument(
        "--scope",
        choices=[scope.value for scope in Scope],
        default=Scope.READ.value,
        help="read: nothing changes (default); build: also POST /subnets and DELETE",
    )
    add.add_argument("--rate", type=float, help="requests per second (default: EQNET_RATE_LIMIT)")
    add.set_defaults(run=_told(_add))
    listing = commands.add_parser("list", help="names, scopes and rates")
    listing.set_defaults(run=_told(_list))
    revoke = commands.add_parser("revoke", help="take a key back; a running service follows within seconds")
    revoke.add_argument("name")
    revoke.set_defaults(run=_told(_revoke))
    for command in (add, listing, revoke):
        command.add_argument(
            "--file", type=Path, help="default: EQNET_API_KEYS_FILE, or api-keys in EQNET_DATA_DIR"
        )
    add.add_argument(
        "--print-entry",
        action="store_true",
        help="write no file; print the key, then the entry to put into EQNET_API_KEYS",
    )


def _file(options: argparse.Namespace) -> KeyFile:
    if options.file is not None:
        return KeyFile(options.file)
    if named := os.environ.get("EQNET_API_KEYS_FILE"):
        return KeyFile(Path(named))
    return KeyFile(default_key_file(Path(os.environ.get("EQNET_DATA_DIR") or "data")))


def _add(options: argparse.Namespace) -> None:
    entry, key = ApiKey.make(name=options.name, scope=Scope(options.scope), rate=options.rate)
    if options.print_entry:
        print(key)
        print(entry.to_entry())
        return
    file = _file(options)
    file.add(entry)
    print(key)
    print(f"{file.path} has its hash; the key itself is shown only here", file=sys.stderr)


def _list(options: argparse.Namespace) -> None:
    for key in _file(options).read().keys:
        print(f"{key.name}\t{key.scope}\t{'' if key.rate is None else f'{key.rate:.9g}/s'}".rstrip())


def _revoke(options: argparse.Namespace) -> None:
    _file(options).revoke(options.name)
    print(f"{options.name} is revoked", file=sys.stderr)


def _told(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def told(options: argparse.Namespace) -> int:
        try:
            run(options)
        except (KeyEntryError, KeyFileError) as error:
            print(f"eqnet: {error}", file=sys.stderr)
            return 1
        return 0

    return told
