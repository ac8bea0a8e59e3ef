"""``turnout serve``: the gateway."""

from __future__ import annotations

import click

from turnout.cli.output import loaded_config


@click.command()
@click.option(
    "--host", help="Address to listen on; beyond loopback only with keys (`turnout key`). Default: gateway.host."
)
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. Default: gateway.port.")
@click.pass_obj
def serve(config_file: str | None, host: str | None, port: int | None) -> None:
    """Run the gateway that coding agents connect to.

    Listens until Ctrl-C or SIGTERM, which let what runs end; says its address on stderr. The configuration is read anew
    on SIGHUP and when its file is saved.
    """
    loaded = loaded_config(config_file)
    from turnout.gateway.live import serve as run

    try:
        run(loaded, host, port)
    except KeyboardInterrupt:
        raise click.Abort from None  # Click would first end the line of a ^C, which other lines have followed
