"""``turnout serve``: the gateway."""

from __future__ import annotations

import click

from turnout.cli.output import loaded_config


@click.command()
@click.option("--host", help="Loopback address to listen on. Default: gateway.host.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. Default: gateway.port.")
@click.pass_obj
def serve(config_file: str | None, host: str | None, port: int | None) -> None:
    """Run the gateway that coding agents connect to.

    Listens until Ctrl-C; says its address on stderr.
    """
    loaded = loaded_config(config_file)
    from turnout.gateway.app import serve as run

    run(loaded, host, port)
